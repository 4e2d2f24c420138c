"""Steps: one optimizer step as packed micro-batches, and what a source of them is.

To `StageTrainer` one item is one optimizer step. All ranks get the same number of micro-batches per step (an empty one
counts 0), because collectives would hang otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from align.data.examples import Example
from align.packed.pack import Batch, microbatches, pack, row_tokens
from align.training.processes import rank_and_world, share


@dataclass(frozen=True)
class OptimizerStep:
    """One optimizer step on this rank: its micro-batches, and over all ranks what each loss term is divided by."""

    batches: list[Batch]
    counts: dict[str, int]
    tokens: int  # over all ranks, as packed
    records: int


class StepSource(Protocol):
    """What the trainer is fed by."""

    steps: int
    period: int
    """Steps after which the time that they take repeats itself."""

    def metrics(self) -> dict[str, float]:
        """Figures of its own, for the log."""
        ...

    def feedback(self, means: Mapping[str, float]) -> None:
        """Told after every step, before the next is asked for: what the losses measured in it, as means over all ranks,
        and the norm of the gradient before it was clipped."""
        ...

    def __iter__(self) -> Iterator[OptimizerStep]: ...

    def state_dict(self) -> Mapping[str, object]:
        """All that the steps not yet given out depend on, after any step: tensors and plain containers."""
        ...

    def load_state_dict(self, state: Mapping[str, object]) -> None: ...


class Watcher(Protocol):
    """Looks on while a plan is carried out and changes nothing in its steps, but may say that there are to be no more,
    or end it with an AlignError."""

    @property
    def best(self) -> int | None:
        """The step whose weights are to be kept, as far as that is known; None where it is the last."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the step taken last is to be the last one."""
        ...

    def begin(self, steps: int, per_epoch: int) -> None: ...

    def look(self, step: int) -> Mapping[str, float]:
        """So many steps are done. What was found of it in records that are held out, for the log."""
        ...

    def step(self, means: Mapping[str, float]) -> None:
        """A step is being taken: what `feedback` is told."""
        ...

    def metrics(self) -> dict[str, float]: ...
    def state_dict(self) -> Mapping[str, object]: ...
    def load_state_dict(self, state: Mapping[str, object]) -> None: ...


def make_step(examples: Sequence[Example], tokens_per_microbatch: int) -> OptimizerStep:
    """Split one optimizer step's examples into micro-batches and deal them out to the ranks, largest first."""
    mine, each, tokens = dealt(examples, tokens_per_microbatch, share())
    batches = [pack([examples[i] for i in items]) for items in mine]
    batches += [empty(examples[0]) for _ in range(each - len(batches))]
    sequences = sum(len(e.sequences) for e in examples)
    counts = {
        "tokens": sum(sum(s) for e in examples for s in e.supervised),
        "chosen_tokens": sum(sum(s) for e in examples for s in e.supervised[0::2]),
        "sequences": sequences,
        "pairs": sequences // 2,
        "lists": len(examples),
    }
    return OptimizerStep(batches, counts, tokens, len(examples))


def dealt(
    examples: Sequence[Example], tokens_per_microbatch: int, which: tuple[int, int] | None = None
) -> tuple[list[list[int]], int, int]:
    """This rank's micro-batches of one optimizer step as indices into `examples`, how many every rank is to have, and
    the tokens of all. `which` share, of how many, if not one a rank."""
    rank, world = which or rank_and_world()
    plan = microbatches(examples, tokens_per_microbatch)
    if len(plan) < world:  # fewer micro-batches than ranks: split by example, so that nobody idles
        plan = [[i] for i in range(len(examples))]
        plan = [[j for p in plan[r::world] for j in p] for r in range(min(world, len(plan)))]
    return plan[rank::world], -(-len(plan) // world), sum(row_tokens([examples[i] for i in items]) for items in plan)


def empty(like: Example) -> Batch:
    """A batch of the same shape that counts nothing, for a rank that would have none."""
    batch = pack([like])
    nothing = {name: torch.zeros_like(column) for name, column in batch.columns.items()}
    return replace(batch, loss_mask=torch.zeros_like(batch.loss_mask), columns=nothing, void=True)
