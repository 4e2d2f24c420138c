"""Peak memory of a stage: its phases one after the other, each a list of named parts; the peak is the largest phase,
not their sum.

Basis: on CUDA what torch's allocator holds at its peak (`torch.cuda.max_memory_allocated`; the driver's context, about
0.5 GiB, and the allocator's gaps come on top). On a CPU the peak of resident memory beyond what is resident after
imports. Rows are as long as those of the data file; where there is none yet, packed rows are taken to be full and
sequences to be as long as `max_length`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from align.data.records import Messages
from align.inputs import narrow
from align.memory.rows import Rows
from align.memory.shapes import Shape


@dataclass(frozen=True)
class Footprint:
    """What a stage says of its memory."""

    phases: Callable[[Workload], list[Phase]]
    """What lies in memory at a time, one after the other."""
    parts: Callable[..., list[Messages]] | None = None
    """The parts of a record of its data (see align/memory/rows.py); none where rows are full, as documents are cut to
    be."""


@dataclass(frozen=True)
class Workload:
    """What decides how much memory a stage takes. Of an artifact, the weights of each of its adapters."""

    footprint: Footprint
    config: Any
    shape: Shape
    quantize: str | None
    device: str
    """cpu or cuda."""
    bf16: bool
    """What the base computes in; else fp32."""
    parent: tuple[int, ...] = ()
    """The parent's adapters."""
    rewards: tuple[tuple[int, ...], ...] = ()
    """The adapters of each reward model."""
    compared: tuple[tuple[int, ...], ...] = ()
    """The adapters of each artifact that `evaluate` compares, or `blend` blends."""
    rows: Rows | None = None
    """How long the rows of the data file are, where that is there."""
    tokenizer: Callable[[], bytes] | None = None
    """Reads the base's tokenizer.json."""
    tokenizer_bytes: int = 0
    """Of that file; 0 where it is not known."""
    whole: bool = False
    """Whether it makes a model of its own weights."""
    teacher: Workload | None = None
    """A teacher that it learns from, as a stage on the teacher's base."""
    base: str = ""
    """The digest of the base, where that is known: equal ones are one."""
    processes: int = 1
    """How many the run has; the plan is for each of them."""
    judge: tuple[int, ...] = ()
    """The adapters of a model that is asked."""

    @property
    def shards(self) -> int:
        """Into how many parts the base is cut; 1 is a whole one on every process."""
        cut = self.offloaded or getattr(self.config, "parallel", None) == "shard"
        return self.processes if cut else 1

    @property
    def offloaded(self) -> bool:
        """Whether the base waits in CPU memory, a process's part or all of it."""
        return bool(getattr(self.config, "base_offload", False))

    @property
    def in_layers(self) -> bool:
        """Whether a layer of the base is made whole for the moment that it is used."""
        return self.shards > 1 or self.offloaded

    @property
    def unsharded(self) -> Workload:
        """The same with all of the base where it computes."""
        config = self.config.model_copy(update={"base_offload": False}) if self.offloaded else self.config
        return replace(self, processes=1, config=config)

    @property
    def size(self) -> int:
        """Bytes of what the base computes in."""
        return 2 if self.bf16 else 4

    @property
    def narrow(self) -> bool:
        """Whether the base stays in the 16 bits of its files while it computes in fp32: `layout.in_16_bits`."""
        plain = self.device == "cpu" and not (self.bf16 or self.quantize or self.in_layers or self.whole)
        stored = self.shape.stored_bytes == 2 and self.shape.may_stay and 2 * self.shape.weights >= narrow.WORTH
        return plain and stored and narrow.suits(self.config)

    @property
    def layers(self) -> int:
        """Layers that hold an adapter: those at the top, where `adapter.layers` says how many, else all."""
        adapter = getattr(self.config, "adapter", None)
        return min(adapter.layers or self.shape.layers, self.shape.layers) if adapter else self.shape.layers

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, answers that are sampled included: as the data have it, else `max_length`,
        or, where a stage has none, 1,024, within the context."""
        limit = min(getattr(self.config, "max_length", 1024), self.shape.context)
        return min(limit, self.rows.sequence + self.new_tokens) if self.rows else limit

    @property
    def keys(self) -> int:
        """Keys that a query may see, on average: of the longest sequence where the data are not known."""
        return min(self.longest, round(self.rows.seen) + self.new_tokens) if self.rows else self.longest

    @property
    def new_tokens(self) -> int:
        """Tokens that are sampled after a row of the data."""
        return int(getattr(self.config, "max_new_tokens", 0))

    def at_most(self, count: int) -> int:
        """`count`, or the number of rows where that is known and smaller."""
        return min(count, self.rows.count) if self.rows and self.rows.count is not None else count


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
class MemoryPlan:
    """The phases of a stage."""

    work: Workload
    phases: tuple[Phase, ...]

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.bytes)

    def largest(self, n: int = 3) -> list[Part]:
        """The largest parts of the peak."""
        return sorted(self.peak.parts, key=lambda part: -part.bytes)[:n]
