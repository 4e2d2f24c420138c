"""What stages are made of: the base, adapters, a packed row's forward and backward, sampling. `kinds` puts them
together."""

from __future__ import annotations

from align.memory import parts
from align.memory.plan import Part, Phase, Setup

PROCESS = 45 << 20
"""What a CPU process takes beyond its imports: Trainer, thread pools, what oneDNN compiles, and code that is mapped
when it first runs (measured)."""
TOKEN = 1 << 10
"""What a tokenizer takes for a token (measured: 160 MiB for Qwen's 152k)."""
GAPS = {"fp32": 0.55, "bf16": 0.2}
"""What glibc's heap loses in gaps on a CPU, as a share of passing tensors. fp32: fitted; single settings of
`tests.benchmarks.memory` have 0.4 to 1.0. bf16: measured on Qwen2.5-Coder-0.5B (SFT, a row of 703 tokens). Tensors
above 32 MiB have pages of their own."""
HEAP_LIMIT = 32 << 20


# ---- what is there throughout ----------------------------------------------------------------------------------------


def fresh(setup: Setup) -> int:
    """Weights of a fresh adapter."""
    adapter = setup.config.adapter
    return adapter.rank * setup.layers * sum(a + b for a, b in setup.shape.adapted(adapter.targets))


def policy(setup: Setup) -> tuple[int, ...]:
    """Weights of the policy's adapters, the trained one last."""
    stack = setup.config.parent_adapter == "stack" or not setup.parent
    return (*setup.parent, fresh(setup)) if stack else setup.parent


def rank_of(setup: Setup, weights: int) -> int:
    """Rank of an adapter of so many weights on all linear layers."""
    return max(1, round(weights / (setup.layers * sum(a + b for a, b in setup.shape.linears.values()))))


def process(setup: Setup) -> list[Part]:
    return (
        [Part("process", PROCESS), Part("tokenizer", TOKEN * setup.shape.vocabulary)] if setup.device == "cpu" else []
    )


def base(setup: Setup) -> list[Part]:
    """On a CPU the files of a quantised base stay mapped as long as embeddings and norms are read from them."""
    name = f"base in {setup.quantize or ('bf16' if setup.bf16 else 'fp32')}"
    weights = Part(name, parts.base_weights(setup.shape, setup.quantize, setup.size))
    if setup.quantize and setup.device == "cpu":
        linears = setup.shape.stored_bytes * setup.shape.linear_weights
        embeddings = setup.shape.other_weights * (
            setup.shape.stored_bytes if setup.shape.stored_bytes != setup.size else 0
        )
        return [weights, Part("weight files, mapped", linears + embeddings)]
    return [weights]


def trained(setup: Setup, roles: dict[str, int]) -> list[Part]:
    """Adapters that train, with their gradients and the optimizer's state."""
    state = parts.OPTIMIZER_BYTES[setup.config.optimizer]
    return [
        Part(f"adapter of {role}, gradients, optimizer", (4 + 4 + state) * weights) for role, weights in roles.items()
    ]


def frozen(roles: dict[str, tuple[int, ...]]) -> list[Part]:
    return [Part(f"adapter of {role}", 4 * sum(adapters)) for role, adapters in roles.items() if sum(adapters)]


# ---- phases ----------------------------------------------------------------------------------------------------------


def load(setup: Setup) -> Phase:
    files = [] if setup.quantize else mapped(setup, setup.shape.stored_bytes, setup.size)
    return Phase("load", (*process(setup), *base(setup), *files))


def mapped(setup: Setup, stored: int, used: int) -> list[Part]:
    """Weights are mapped from their files on a CPU; those of `stored` bytes that are used in others are copied tensor
    by tensor."""
    return (
        [Part("weight files, mapped", stored * setup.shape.weights)] if setup.device == "cpu" and stored != used else []
    )


def row(setup: Setup, record: int, records: int, sampled: int = 0) -> int:
    """Tokens of the longest packed row: a full one, but no more than a step's `records` of `record` tokens have, and no
    less than one. Where the data are known, records are as long as theirs, with `sampled` tokens of answers."""
    if setup.rows is None:
        return max(min(setup.config.tokens_per_microbatch, records * record), record)
    together = setup.rows.of(setup.at_most(records)) + setup.at_most(records) * sampled
    longest = min(setup.rows.record + sampled, record)
    return max(min(setup.config.tokens_per_microbatch, together), longest)


def lean(setup: Setup) -> bool:
    """Whether freed memory goes back to the system: `load.give_back_freed_memory`."""
    return bool(setup.quantize or getattr(setup.config, "activation_checkpointing", False))


def heap(setup: Setup, phase: str, fixed: list[Part], passing: list[Part], tensor: int) -> Phase:
    """A phase; on a CPU with the gaps that tensors of at most `tensor` bytes leave in the heap."""
    in_heap = setup.device == "cpu" and not lean(setup) and tensor <= HEAP_LIMIT
    gaps = round(GAPS["bf16" if setup.bf16 else "fp32"] * sum(part.bytes for part in passing)) if in_heap else 0
    return Phase(phase, (*fixed, *passing, *([Part("gaps in the heap", gaps)] if gaps else [])))


def by_matmul(setup: Setup) -> bool:
    """Whether attention is matrix products: `attention.attend` on a CPU in bf16."""
    return setup.bf16 and setup.device == "cpu" and setup.keys <= parts.SLOW_KERNEL_KEYS


def passes(
    setup: Setup, fixed: list[Part], adapters: tuple[int, ...], tokens: int, counted: int, read: int, of: str = ""
) -> list[Phase]:
    """A forward and backward pass of a packed row through the base with a role's adapters, given by their weights; `of`
    which role, where several take turns. `counted`: rows that the head takes. `read`: those that are read of the last
    layer."""
    rank, fused = sum(rank_of(setup, weights) for weights in adapters), setup.quantize != "int8"
    kept = parts.kept_per_token(setup.shape, rank, size=setup.size, fused=fused, by_matmul=by_matmul(setup))
    copied = setup.layers * parts.factors_copied(setup.shape, rank, setup.size) if fused else 0
    fixed = [*fixed, Part("adapters, copied for products", copied)]
    spared = parts.unread_rows(tokens, read) * parts.kept_by_feed_forward(
        setup.shape, rank, size=setup.size, fused=fused
    )
    return through_layers(
        setup, fixed, kept, tokens, counted, copies=parts.LOGPROBS, stream=setup.size, spared=spared, of=of
    )


def through_layers(
    setup: Setup,
    fixed: list[Part],
    kept: int,
    tokens: int,
    counted: int,
    *,
    copies: int,
    stream: int,
    spared: int = 0,
    of: str = "",
) -> list[Phase]:
    """The end of a forward, in the head, and the widest place of the backward.

    `kept`: bytes that one layer keeps of a token. `copies` of a block of logits. `stream`: bytes of a number that goes
    from layer to layer. `spared`: bytes that the last layer keeps less.
    """
    shape, size = setup.shape, setup.size
    if setup.config.activation_checkpointing:
        held = [Part("layer inputs", tokens * setup.layers * shape.hidden * stream)]
        again = [Part("one layer, recomputed", tokens * kept)]
    else:
        held, again = [Part("activations", setup.layers * tokens * kept - spared)], []
    of_rows = counted * shape.hidden * (2 * size + 2 * 4)  # the rows, their gradient, and its two parts in fp32
    logits = parts.head_chunk(shape, counted, size, setup.device, copies) + of_rows
    dequantised = [Part("one matrix, dequantised", 2 * size * parts.largest_matrix(shape))] if setup.quantize else []
    gradients = [Part("gradients of activations", round(2.5 * 4 * tokens * shape.intermediate))]
    tensor = 4 * tokens * shape.intermediate
    named = f" of {of}" if of else ""
    return [
        heap(setup, f"forward{named}", fixed, [*held, *([Part("logits", logits)] if counted else [])], tensor),
        heap(setup, f"backward{named}", fixed, [*held, *again, *gradients, *dequantised], tensor),
    ]


def scoring(setup: Setup, name: str, fixed: list[Part], tokens: int, counted: int, copies: int) -> Phase:
    """A pass without a backward over a packed row, with `copies` of a chunk of logits."""
    forward = Part("activations", tokens * parts.passing_per_token(setup.shape, setup.size))
    logits = Part("logits", parts.head_chunk(setup.shape, counted, setup.size, setup.device, copies))
    return heap(setup, name, fixed, [forward, logits], 4 * tokens * setup.shape.intermediate)


def merged_copy(setup: Setup) -> list[Part]:
    """`merged.MergedCopy`: the adapted matrices once more; a quantised base is sampled with its adapters as they
    are."""
    adapted = setup.shape.linear_weights * setup.layers // setup.shape.layers
    return [] if setup.quantize else [Part("merged copy for sampling", setup.size * adapted)]


def rows_below(setup: Setup, tokens: int) -> list[Part]:
    """`keep.Keeper`: what enters the first adapted layer, of every token, where that is not the first layer and memory
    is to hold it."""
    if setup.layers == setup.shape.layers or setup.config.trunk_cache != "memory":
        return []
    size = 2 if setup.config.trunk_dtype == "bf16" else setup.size
    return [Part("rows from the frozen layers", tokens * setup.shape.hidden * size)]


def sampling(setup: Setup, fixed: list[Part], prompts: int, n: int, new_tokens: int) -> list[Phase]:
    """`n` answers each growing on `prompts` prompts, or as many as are sampled at a time, that fill what `new_tokens`
    leave of a sequence: the pass over the prompts, which keeps their keys and values, and then the answers, whose room
    is taken at once."""
    shape, size = setup.shape, setup.size
    prompt = max(1, setup.longest - new_tokens)
    at_a_time = min(prompts, max(1, parts.SAMPLED_TOKENS // (prompt + n * new_tokens)))
    tokens, answers = at_a_time * prompt, at_a_time * n
    cache = parts.cache_per_token(shape, size)
    of_prompts = [
        Part("keys and values", tokens * cache),
        Part("activations of prompts", tokens * parts.passing_per_token(shape, size)),
    ]
    of_answers = [
        Part("keys and values", (tokens + answers * new_tokens) * cache),
        Part("logits of samples", answers * parts.sampling_per_row(shape)),
    ]
    # what a layer made of prompts outside its feed-forward
    left = tokens * size * 2 * (shape.hidden + shape.query + shape.key)
    in_heap = setup.device == "cpu" and not lean(setup) and tokens * size * shape.hidden <= HEAP_LIMIT
    gaps = [Part("gaps in the heap", left)] if in_heap else []
    return [
        heap(setup, "prompts", fixed, of_prompts, 4 * tokens * shape.intermediate),
        Phase("sampling", (*fixed, *of_answers, *gaps)),
    ]
