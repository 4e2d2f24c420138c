"""Peak memory of a stage: its phases one after the other, each a list of named parts; the peak is the largest phase, not their sum.

Basis: on CUDA what torch's allocator holds at its peak (`torch.cuda.max_memory_allocated`; the driver's context, about 0.5 GiB, and the
allocator's gaps come on top). On a CPU the peak of resident memory beyond what is resident after imports. Packed rows are taken to be full
and sequences to be as long as `max_length`: other data takes less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from align.memory import parts
from align.memory.shapes import Shape

PROCESS = 45 << 20
"""What a CPU process takes beyond its imports: tokenizer, Trainer, thread pools, and code that is mapped when it first runs (measured)."""
GAPS = {"fp32": 0.55, "bf16": 0.85}
"""What glibc's heap loses in gaps on a CPU, as a share of passing tensors; in bf16 PEFT's casts leave more. Fitted: single settings of
`tests.benchmarks.memory` have 0.4 to 1.0. Tensors above 32 MiB have pages of their own."""
HEAP_LIMIT = 32 << 20
PROBE_ROWS = 16 * 48
"""Rows on which a merged model is compared with the unmerged one, in fp64: `merge.PROBES` of `merge.PROBE_TOKENS`."""


@dataclass(frozen=True)
class Setup:
    """What decides how much memory a stage takes."""

    kind: str
    config: Any
    shape: Shape
    quantize: str | None
    device: str
    """cpu or cuda."""
    bf16: bool
    """What the base computes in; else fp32."""
    parent: tuple[int, ...] = ()
    """Weights of each adapter of the parent."""
    reward: tuple[int, ...] = ()
    """Weights of each adapter of the reward model."""

    @property
    def size(self) -> int:
        """Bytes of what the base computes in."""
        return 2 if self.bf16 else 4


@dataclass(frozen=True)
class Part:
    """Something in memory."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Phase:
    """What lies in memory together at one time."""

    name: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True)
class Plan:
    """The phases of a stage."""

    setup: Setup
    phases: tuple[Phase, ...]

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.bytes)

    def largest(self, n: int = 3) -> list[Part]:
        """The largest parts of the peak."""
        return sorted(self.peak.parts, key=lambda part: -part.bytes)[:n]


def plan(setup: Setup) -> Plan:
    """Predict a stage. Raises: KeyError for a kind without a plan; see `KINDS`."""
    return Plan(setup, tuple(KINDS[setup.kind](setup)))


# ---- what is there throughout ----------------------------------------------------------------------------------------------------------


def fresh(setup: Setup) -> int:
    """Weights of a fresh adapter."""
    lora = setup.config.lora
    return lora.rank * setup.shape.layers * sum(a + b for a, b in setup.shape.adapted(lora.targets))


def policy(setup: Setup) -> tuple[int, ...]:
    """Weights of the policy's adapters, the trained one last."""
    stack = setup.config.adapter == "stack" or not setup.parent
    return (*setup.parent, fresh(setup)) if stack else setup.parent


def rank_of(setup: Setup, weights: int) -> int:
    """Rank of an adapter of so many weights on all linear layers."""
    return max(1, round(weights / (setup.shape.layers * sum(a + b for a, b in setup.shape.linears.values()))))


def process(setup: Setup) -> list[Part]:
    return [Part("process", PROCESS)] if setup.device == "cpu" else []


def base(setup: Setup) -> list[Part]:
    """On a CPU the files of a quantised base stay mapped as long as embeddings and norms are read from them."""
    name = f"base in {setup.quantize or ('bf16' if setup.bf16 else 'fp32')}"
    weights = Part(name, parts.base_weights(setup.shape, setup.quantize, setup.size))
    if setup.quantize and setup.device == "cpu":
        linears = setup.shape.stored_bytes * setup.shape.linear_weights
        embeddings = setup.shape.other_weights * (setup.shape.stored_bytes if setup.shape.stored_bytes != setup.size else 0)
        return [weights, Part("weight files, mapped", linears + embeddings)]
    return [weights]


def load(setup: Setup) -> Phase:
    """Weights are mapped from their files; what is not stored as it is used is copied tensor by tensor."""
    stored = setup.shape.stored_bytes * setup.shape.weights
    as_it_is = setup.quantize is None and setup.shape.stored_bytes == setup.size
    mapped = [] if as_it_is or setup.device == "cuda" or setup.quantize else [Part("weight files, mapped", stored)]
    return Phase("load", (*process(setup), *base(setup), *mapped))


# ---- training --------------------------------------------------------------------------------------------------------------------------


def row(setup: Setup, branches: int) -> int:
    """Tokens of the longest packed row: a full one, or a single record that is longer, but no more than a step has."""
    c = setup.config
    longest = min(c.max_length, setup.shape.context) * branches
    return max(min(c.tokens_per_microbatch, c.batch_size * longest), min(longest, 2 * c.tokens_per_microbatch))


def heap(setup: Setup, phase: str, fixed: list[Part], passing: list[Part], tensor: int) -> Phase:
    """A phase; on a CPU with the gaps that tensors of at most `tensor` bytes leave in the heap."""
    lean = setup.quantize or getattr(setup.config, "activation_checkpointing", False)  # `load.give_back_freed_memory`
    in_heap = setup.device == "cpu" and not lean and tensor <= HEAP_LIMIT
    gaps = round(GAPS["bf16" if setup.bf16 else "fp32"] * sum(part.bytes for part in passing)) if in_heap else 0
    return Phase(phase, (*fixed, *passing, *([Part("gaps in the heap", gaps)] if gaps else [])))


def passes(setup: Setup, fixed: list[Part], graphs: dict[str, tuple[int, ...]], tokens: int, counted: int) -> list[Phase]:
    """A forward and backward pass of a packed row: the end of the forward, in the head, and the widest place of the backward.

    `graphs`: role -> its adapters' weights, for the roles whose activations are kept together. `counted`: rows that the head takes.
    """
    shape, size = setup.shape, setup.size
    keys = min(setup.config.max_length, shape.context)
    by_matmul = setup.bf16 and setup.device == "cpu" and keys <= parts.SLOW_KERNEL_KEYS
    layer = {
        role: tokens
        * parts.kept_per_token(
            shape,
            sum(rank_of(setup, weights) for weights in adapters),
            size=size,
            fused=not setup.bf16,
            keys=keys,
            by_matmul=by_matmul,
            int8=setup.quantize == "int8",
        )
        for role, adapters in graphs.items()
    }
    several = len(graphs) > 1
    if setup.config.activation_checkpointing:
        inputs = tokens * shape.layers * shape.hidden * size
        kept = [Part(f"layer inputs{f' ({role})' if several else ''}", inputs) for role in graphs]
        again = [Part("one layer, recomputed", max(layer.values()))]
    else:
        kept = [Part(f"activations{f' ({role})' if several else ''}", shape.layers * one) for role, one in layer.items()]
        again = []
    logits = [Part("logits", parts.head_chunk(shape, counted, size, backward=True) + 2 * counted * shape.hidden * size)] if counted else []
    dequantised = [Part("one matrix, dequantised", 2 * size * parts.largest_matrix(shape))] if setup.quantize else []
    gradients = [Part("gradients of activations", round(2.5 * 4 * tokens * shape.intermediate))]
    tensor = 4 * tokens * shape.intermediate
    return [
        heap(setup, "forward", fixed, [*kept, *logits], tensor),
        heap(setup, "backward", fixed, [*kept, *again, *gradients, *dequantised], tensor),
    ]


def trained(setup: Setup, roles: dict[str, int]) -> list[Part]:
    """Adapters that train, with their gradients and the optimizer's state."""
    state = parts.OPTIMIZER_BYTES[setup.config.optimizer]
    return [Part(f"adapter of {role}, gradients, optimizer", (4 + 4 + state) * weights) for role, weights in roles.items()]


def frozen(roles: dict[str, tuple[int, ...]]) -> list[Part]:
    return [Part(f"adapter of {role}", 4 * sum(adapters)) for role, adapters in roles.items() if sum(adapters)]


def supervised(setup: Setup, branches: int, head: bool, reference: bool) -> list[Phase]:
    """SFT, reward and DPO: one role in training, and perhaps a pass over the reference before it."""
    mine = policy(setup)
    fixed = [*process(setup), *base(setup), *trained(setup, {"policy": mine[-1]}), *frozen({"policy, below": mine[:-1]})]
    if branches == 2:
        fixed += frozen({"reference": setup.parent})
    tokens = row(setup, branches)
    phases = [load(setup), *passes(setup, fixed, {"policy": mine}, tokens, tokens if head else 0)]
    if reference:
        forward = Part("activations", tokens * parts.passing_per_token(setup.shape, setup.size))
        logits = Part("logits", parts.head_chunk(setup.shape, tokens, setup.size, backward=False))
        phases.append(heap(setup, "reference", fixed, [forward, logits], 4 * tokens * setup.shape.intermediate))
    return phases


def sft(setup: Setup) -> list[Phase]:
    return supervised(setup, 1, head=True, reference=False)


def reward(setup: Setup) -> list[Phase]:
    phases = supervised(setup, 2, head=False, reference=False)
    if setup.config.centre_samples:
        fixed = [*process(setup), *base(setup), *frozen({"policy": policy(setup), "reference": setup.parent})]
        new = setup.config.centre_max_new_tokens
        copied = setup.parent if setup.parent else ()
        phases.append(sampling(setup, fixed, setup.config.centre_samples, new, merged=bool(copied)))
    return phases


def dpo(setup: Setup) -> list[Phase]:
    return supervised(setup, 2, head=True, reference=True)


def ppo(setup: Setup) -> list[Phase]:
    c = setup.config
    mine, value = policy(setup), setup.reward
    roles = {"policy": mine[-1], "value": sum(value)}
    others = {"policy, below": mine[:-1], "reference": setup.parent, "reward": value}
    fixed = [*process(setup), *base(setup), *trained(setup, roles), *frozen(others)]
    if setup.quantize is None:
        fixed.append(merged_copy(setup))
    tokens = max(min(c.tokens_per_microbatch, c.batch_size * c.max_length), min(c.max_length, c.tokens_per_microbatch))
    counted = min(tokens, c.batch_size * c.max_new_tokens)
    return [
        load(setup),
        sampling(setup, fixed, c.rollout_size, c.max_new_tokens, merged=False),
        *passes(setup, fixed, {"policy": mine, "value": value}, tokens, counted),
    ]


# ---- sampling and merging --------------------------------------------------------------------------------------------------------------


def merged_copy(setup: Setup) -> Part:
    """`rollout.MergedCopy`: the adapted matrices once more."""
    adapted = setup.shape.layers * sum(a * b for a, b in setup.shape.linears.values())
    return Part("merged copy for sampling", setup.size * adapted)


def sampling(setup: Setup, fixed: list[Part], samples: int, new_tokens: int, merged: bool) -> Phase:
    """Growing answers to prompts that are as long as `max_length` leaves room for."""
    c, shape = setup.config, setup.shape
    prompt = max(1, min(c.max_length, shape.context) - new_tokens) if hasattr(c, "max_length") else min(shape.context, 1024)
    at_a_time = min(samples, max(1, parts.SAMPLED_TOKENS // (prompt + new_tokens)))
    cache = Part("keys and values", at_a_time * (prompt + new_tokens) * parts.cache_per_token(shape, setup.size))
    logits = Part("logits of samples", at_a_time * parts.sampling_per_row(shape))
    prompts = Part("activations of prompts", at_a_time * prompt * parts.passing_per_token(shape, setup.size))
    copied = [merged_copy(setup)] if merged and setup.quantize is None else []
    passing = [cache, max(logits, prompts, key=lambda part: part.bytes)]
    return heap(setup, "sampling", [*fixed, *copied], passing, 4 * at_a_time * prompt * shape.intermediate)


def merge(setup: Setup) -> list[Phase]:
    """The base in fp32, the merged matrices beside it, and what is written in the precision of the files."""
    shape, wanted = setup.shape, setup.config.dtype
    stored = {"auto": shape.stored_bytes, "fp32": 4}.get(wanted, 2)
    adapter = [Part("adapter", 4 * sum(setup.parent))]
    whole = Part("base in fp32", 4 * shape.weights)
    copied = Part("merged matrices", 4 * shape.linear_weights)
    written = [Part("model as it is written", stored * shape.weights)] if stored != 4 else []
    mapped = [Part("weight files, mapped", shape.stored_bytes * shape.weights)] if setup.device == "cpu" and shape.stored_bytes != 4 else []
    logits = Part("logits of both models", PROBE_ROWS * shape.vocabulary * (2 * 4 + 5 * 8))
    left = [Part("gaps in the heap", 2 * copied.bytes)] if setup.device == "cpu" and 4 * parts.largest_matrix(shape) <= HEAP_LIMIT else []
    return [
        Phase("load", (*process(setup), whole, *mapped)),
        Phase("merge", (*process(setup), whole, *adapter, copied, *written)),
        Phase("comparison", (*process(setup), logits, *left)),
    ]


KINDS: dict[str, Callable[[Setup], list[Phase]]] = {"sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo, "merge": merge}
"""Kinds of stage that can be planned."""
