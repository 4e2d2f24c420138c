"""What stages are made of: the base, adapters, a packed row's forward and backward, sampling. `kinds` puts them
together."""

from __future__ import annotations

from dataclasses import replace

from align.memory import sizes
from align.memory.plan import Part, Phase, Workload

PROCESS = 45 << 20
"""What a CPU process takes beyond its imports: Trainer, thread pools, what oneDNN compiles, and code that is mapped
when it first runs (measured)."""
TOKENIZER, READING = 8.3, 14.5
"""What a tokenizer takes for a byte of its file, and what it takes while that is read (measured: 262 and 463 MiB for
Gemma's 33 MB, 101 and 174 for Qwen's 11 MB)."""
TOKEN = 100
"""Bytes of the file for a token, where there is no file yet (Gemma's 127, Qwen's 75)."""
GAPS = {"fp32": 0.55, "bf16": 0.1}
"""What glibc's heap loses in gaps on a CPU, as a share of passing tensors. fp32: fitted; single settings of
`tests.benchmarks.memory` have 0.4 to 1.0. bf16: measured on Gemma-3-270M (SFT: 38 MiB free beside 440 in use). Tensors
above 32 MiB have pages of their own."""
HEAP_LIMIT = 32 << 20


# ---- what is there throughout ----------------------------------------------------------------------------------------


def fresh(work: Workload) -> int:
    """Weights of a fresh adapter."""
    adapter = work.config.adapter
    return adapter.rank * work.layers * sum(a + b for a, b in work.shape.adapted(adapter.targets))


def policy(work: Workload) -> tuple[int, ...]:
    """Weights of the policy's adapters, the trained one last."""
    stack = work.config.parent_adapter == "stack" or not work.parent
    if not stack:
        return work.parent
    made = (fresh(work),) * (2 if work.config.adapter.takes_off else 1)  # with what takes its start off
    return *work.parent, *made


def blended(work: Workload) -> tuple[int]:
    """Weights of what several adapters become, at most: side by side all of them, else as many as the largest."""
    each = [sum(adapters) for adapters in work.compared]
    return (sum(each) if work.config.method == "cat" else max(each),)


def moved(work: Workload) -> list[Part]:
    """Adapters of a reference that follows the policy."""
    count: int = getattr(work.config, "snapshots", 0)
    return frozen({"reference, moved": (policy(work)[-1],) * count})


def rank_of(work: Workload, weights: int) -> int:
    """Rank of an adapter of so many weights on all linear layers."""
    return max(1, round(weights / (work.layers * sum(a + b for a, b in work.shape.linears.values()))))


def process(work: Workload) -> list[Part]:
    return [Part("process", PROCESS), Part("tokenizer", tokenizer(work, TOKENIZER))] if work.device == "cpu" else []


def tokenizer(work: Workload, times: float) -> int:
    """So many times what a tokenizer's file has."""
    return round(times * (work.tokenizer_bytes or TOKEN * work.shape.vocabulary))


def base(work: Workload) -> list[Part]:
    if work.narrow:
        widened = Part("one matrix, widened", work.size * sizes.largest_matrix(work.shape))
        return [Part("base in 16 bits", sizes.base_weights(work.shape, None, 2)), widened]
    name = f"base in {work.quantize or ('bf16' if work.bf16 else 'fp32')}"
    weights = Part(name, sizes.base_weights(work.shape, work.quantize, work.size))
    if not work.in_layers:
        return [weights]
    if work.offloaded and work.device == "cuda":
        return [gathered(work)]
    here = replace(weights, name=f"1 of {work.shards} shards of the {name}", bytes=weights.bytes // work.shards)
    return [here if work.shards > 1 else weights, gathered(work)]


def gathered(work: Workload) -> Part:
    """What of a base in shards is whole at a time: a layer, the next one, which is fetched meanwhile, and embedding or
    head; each beside what came from the other processes."""
    whole = sizes.base_weights(work.shape, work.quantize, work.size)
    others = work.size * work.shape.other_weights
    layer, matrix = (whole - others) // work.shape.layers, work.size * work.shape.vocabulary * work.shape.hidden
    return Part("layers gathered", max(3 * layer, 2 * matrix))


def trained(work: Workload, roles: dict[str, int]) -> list[Part]:
    """Adapters that train, with their gradients and the optimizer's state."""
    state = sizes.OPTIMIZER_BYTES[work.config.optimizer]
    return [
        Part(f"adapter of {role}, gradients, optimizer", (4 + 4 + state) * weights) for role, weights in roles.items()
    ]


def frozen(roles: dict[str, tuple[int, ...]]) -> list[Part]:
    return [Part(f"adapter of {role}", 4 * sum(adapters)) for role, adapters in roles.items() if sum(adapters)]


# ---- phases ----------------------------------------------------------------------------------------------------------


def load(work: Workload) -> Phase:
    # shards of quantised weights are cut from whole ones, one process on a machine after the other
    read = work.unsharded if work.quantize else work
    # whose logits are compared with the model's own, all at once
    head = [Part("head, widened", 4 * work.shape.hidden * work.shape.vocabulary)] if work.narrow else []
    return Phase("load", (*process(work), *base(read), *as_stored(work, work.size), *in_full(work), *head))


def head_widened(work: Workload, rows: int) -> list[Part]:
    """What of a head that is kept in 16 bits is in fp32 at a time, for so many rows."""
    return [Part("rows of the head, widened", sizes.rows_widened(work.shape, rows))] if work.narrow and rows else []


def in_full(work: Workload) -> list[Part]:
    """The base as its files hold it, which LoftQ's start is made of; in main memory."""
    adapter = getattr(work.config, "adapter", None)
    if adapter is None or adapter.init_lora_weights != "loftq" or work.device != "cpu":
        return []
    return [Part("base in full", work.shape.stored_bytes * work.shape.weights)]


def check(work: Workload, fixed: list[Part]) -> list[Phase]:
    """What came out is loaded again beside what it came from, its tokenizer too; all else of it is smaller."""
    if work.device != "cpu":
        return []
    return [Phase("check", (*fixed, Part("tokenizer, loaded again", tokenizer(work, READING))))]


def as_stored(work: Workload, used: int) -> list[Part]:
    """The largest matrix as it is stored, where weights are used in other than that and so are read tensor by tensor,
    not mapped: `weights.mapped_or_read`."""
    shape = work.shape
    largest = shape.stored_bytes * max(shape.vocabulary * shape.hidden, sizes.largest_matrix(shape))
    same = (shape.stored_bytes == used and not work.quantize) or work.narrow
    return [] if same or work.device != "cpu" else [Part("one matrix as it is stored", largest)]


def row(work: Workload, record: int, records: int, sampled: int = 0) -> int:
    """Tokens of the longest packed row: a full one, but no more than a step's `records` of `record` tokens have, and no
    less than one. Where the data are known, records are as long as theirs, with `sampled` tokens of answers."""
    if work.rows is None:
        return max(min(work.config.tokens_per_microbatch, records * record), record)
    together = work.rows.of(work.at_most(records)) + work.at_most(records) * sampled
    longest = min(work.rows.record + sampled, record)
    return max(min(work.config.tokens_per_microbatch, together), longest)


def lean(work: Workload) -> bool:
    """Whether freed memory goes back to the system: `process.give_back_freed_memory`."""
    return bool(work.quantize or work.in_layers or getattr(work.config, "activation_checkpointing", False))


def heap(work: Workload, phase: str, fixed: list[Part], passing: list[Part], tensor: int) -> Phase:
    """A phase; on a CPU with the gaps that tensors of at most `tensor` bytes leave in the heap."""
    in_heap = work.device == "cpu" and not lean(work) and tensor <= HEAP_LIMIT
    share = GAPS["bf16" if work.bf16 else "fp32"]
    gaps = round(share * sum(part.bytes for part in passing)) if in_heap else 0
    lost = [Part("gaps in the heap", gaps)] if gaps else []
    return Phase(phase, (*fixed, *passing, *lost))


def by_matmul(work: Workload) -> bool:
    """Whether attention is matrix products: `attention.attend` on a CPU in bf16."""
    return work.bf16 and work.device == "cpu" and work.keys <= sizes.SLOW_KERNEL_KEYS


def passes(
    work: Workload,
    fixed: list[Part],
    adapters: tuple[int, ...],
    tokens: int,
    counted: int,
    read: int,
    of: str = "",
    copies: int = sizes.LOGPROBS,
) -> list[Phase]:
    """A forward and backward pass of a packed row through the base with a role's adapters, given by their weights; `of`
    which role, where several take turns. `counted`: rows that the head takes, `copies` of a block of their logits.
    `read`: those that are read of the last layer."""
    rank, fused = sum(rank_of(work, weights) for weights in adapters), work.quantize != "int8"
    kept = sizes.kept_per_token(work.shape, rank, size=work.size, fused=fused, by_matmul=by_matmul(work))
    copied = work.layers * sizes.factors_copied(work.shape, rank, work.size) if fused else 0
    fixed = [*fixed, Part("adapters, copied for products", copied)]
    spared = sizes.spared_by_last_layer(work.shape, rank, tokens, read, size=work.size, fused=fused)
    return through_layers(work, fixed, kept, tokens, counted, copies=copies, stream=work.size, spared=spared, of=of)


def through_layers(
    work: Workload,
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
    shape, size = work.shape, work.size
    if work.config.activation_checkpointing:
        held = [Part("layer inputs", tokens * work.layers * shape.hidden * stream)]
        again = [Part("one layer, recomputed", tokens * kept)]
    else:
        held, again = [Part("activations", work.layers * tokens * kept - spared)], []
    of_rows = counted * shape.hidden * (2 * size + 2 * 4)  # the rows, their gradient, and its two parts in fp32
    logits = sizes.head_chunk(shape, counted, size, work.device, copies) + of_rows
    dequantised = [Part("one matrix, dequantised", 2 * size * sizes.largest_matrix(shape))] if work.quantize else []
    gradients = [Part("gradients of activations", tokens * sizes.passing_back_per_token(shape, size))]
    tensor = 4 * tokens * shape.intermediate
    of_head = [Part("logits", logits)] if counted else []
    named = f" of {of}" if of else ""
    return [
        heap(work, f"forward{named}", [*fixed, *head_widened(work, counted)], [*held, *of_head], tensor),
        heap(work, f"backward{named}", fixed, [*held, *again, *gradients, *dequantised], tensor),
    ]


def scoring(work: Workload, name: str, fixed: list[Part], tokens: int, counted: int, copies: int) -> Phase:
    """A pass without a backward over a packed row, with `copies` of a chunk of logits."""
    forward = Part("activations", tokens * sizes.passing_per_token(work.shape, work.size))
    logits = Part("logits", sizes.head_chunk(work.shape, counted, work.size, work.device, copies))
    fixed = [*fixed, *head_widened(work, counted)]
    return heap(work, name, fixed, [forward, logits], 4 * tokens * work.shape.intermediate)


def merged_copy(work: Workload) -> list[Part]:
    """`merged.MergedCopy`: the adapted matrices once more; a quantised base is sampled with its adapters as they
    are."""
    adapted = work.shape.linear_weights * work.layers // work.shape.layers
    return [] if work.quantize or work.in_layers else [Part("merged copy for sampling", work.size * adapted)]


def rows_below(work: Workload, tokens: int) -> list[Part]:
    """`trunk_cache.Keeper`: what enters the first adapted layer, of every token, where that is not the first layer and
    memory is to hold it."""
    noise = getattr(work.config, "neftune_noise_alpha", None)
    if work.layers == work.shape.layers or work.config.trunk_cache != "memory" or noise:
        return []
    size = 2 if work.config.trunk_dtype == "bf16" else work.size
    return [Part("rows from the frozen layers", tokens * work.shape.hidden * size)]


def sampling(work: Workload, fixed: list[Part], prompts: int, n: int, new_tokens: int) -> list[Phase]:
    """`n` answers each growing on `prompts` prompts, or as many as are sampled at a time, that fill what `new_tokens`
    leave of a sequence: the pass over the prompts, which keeps their keys and values, and then the answers, whose room
    is taken at once."""
    shape, size = work.shape, work.size
    prompt = max(1, work.longest - new_tokens)
    at_a_time = min(prompts, max(1, sizes.SAMPLED_TOKENS // (prompt + n * new_tokens)))
    tokens, answers = at_a_time * prompt, at_a_time * n
    cache = sizes.cache_per_token(shape, size)
    of_prompts = [
        Part("keys and values", tokens * cache),
        Part("activations of prompts", tokens * sizes.passing_per_token(shape, size)),
    ]
    of_answers = [
        Part("keys and values", (tokens + answers * new_tokens) * cache),
        Part("logits of samples", answers * sizes.sampling_per_row(shape)),
    ]
    if work.in_layers:
        fixed = [*fixed, Part("base gathered for sampling", sizes.base_weights(shape, work.quantize, size))]
    # what a layer made of prompts outside its feed-forward
    left = tokens * size * 2 * (shape.hidden + shape.query + shape.key)
    in_heap = work.device == "cpu" and not lean(work) and tokens * size * shape.hidden <= HEAP_LIMIT
    gaps = [Part("gaps in the heap", left)] if in_heap else []
    return [
        heap(work, "prompts", fixed, of_prompts, 4 * tokens * shape.intermediate),
        Phase("sampling", (*fixed, *of_answers, *gaps)),
    ]
