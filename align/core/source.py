"""Step sources: iterators of optimizer steps, each a list of packed micro-batches, that can be saved and resumed.

To `StageTrainer` one item is one optimizer step. All ranks get the same number of micro-batches per step (an empty one counts 0),
because collectives would hang otherwise.
"""

from __future__ import annotations

import atexit
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState

from align.core.load import device
from align.core.pack import Batch, by_prefix, microbatches, pack, row_tokens
from align.data import steps
from align.data.examples import Example
from align.errors import AlignError


@dataclass(frozen=True)
class Step:
    """One optimizer step on this rank: its micro-batches, and over all ranks what each loss term is divided by."""

    batches: list[Batch]
    counts: dict[str, int]
    tokens: int  # over all ranks, as packed
    records: int


class Source(Protocol):
    """What the trainer is fed by."""

    steps: int

    def metrics(self) -> dict[str, float]:
        """Figures of its own, for the log."""
        ...

    def feedback(self, means: Mapping[str, float]) -> None:
        """Told after every step, before the next is asked for: what the losses measured in it, as means over all ranks, and the norm of
        the gradient before it was clipped."""
        ...

    def __iter__(self) -> Iterator[Step]: ...

    def state_dict(self) -> dict[str, Any]:
        """All that the steps not yet given out depend on, after any step: tensors and plain containers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Watcher(Protocol):
    """Looks on while a plan is carried out and changes nothing in it, but may end it with an AlignError."""

    def begin(self, steps: int) -> None: ...

    def before(self, step: int) -> None:
        """So many steps are done and one more is to come."""
        ...

    def step(self, means: Mapping[str, float]) -> None:
        """A step was taken: what `feedback` is told."""
        ...

    def metrics(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


PATIENCE = timedelta(hours=12)
"""How long ranks wait for each other: the first may be copying a large model, or waiting for another process that has asked the same."""


def from_first(text: str = "") -> str:
    """What the first of torchrun's processes says, on each of them; they meet here for the first time.

    Raises: AlignError where it has ended.
    """
    said = [text]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        with meeting():
            if not torch.distributed.is_initialized():
                state = PartialState(cpu=device().type == "cpu", timeout=PATIENCE)  # as Trainer makes the group, which it then finds
                atexit.register(state.destroy_process_group)  # its threads, still there when a process ends, can abort it
            torch.distributed.broadcast_object_list(said, src=0, device=device())
    return said[0]


@contextmanager
def meeting() -> Iterator[None]:
    """Ranks exchange something in this block. Raises: AlignError where one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        if rank_and_world()[1] == 1 or not re.search(r"[Cc]onnection (closed|reset|was)|gloo|NCCL|Broken pipe", str(error)):
            raise
        why = "another of torchrun's processes has ended; see its message. The same command goes on from what was done."
        raise AlignError(why) from error


def barrier() -> None:
    """Wait for all ranks; nothing to do for one process."""
    if rank_and_world()[1] > 1:
        torch.distributed.barrier()


def agree(*flags: bool) -> list[bool]:
    """What any rank says holds for all: signals and clocks differ between them."""
    if rank_and_world()[1] == 1:
        return list(flags)
    said = torch.tensor(flags, dtype=torch.int32, device=device())
    torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in said.tolist()]


def make_step(examples: Sequence[Example], tokens_per_microbatch: int) -> Step:
    """Split one optimizer step's examples into micro-batches and deal them out to the ranks, largest first."""
    mine, each, tokens = dealt(examples, tokens_per_microbatch)
    batches = [pack([examples[i] for i in items]) for items in mine]
    batches += [empty(examples[0]) for _ in range(each - len(batches))]
    sequences = sum(len(e.sequences) for e in examples)
    counts = {"tokens": sum(sum(s) for e in examples for s in e.supervised), "sequences": sequences, "pairs": sequences // 2}
    return Step(batches, counts, tokens, len(examples))


def dealt(examples: Sequence[Example], tokens_per_microbatch: int) -> tuple[list[list[int]], int, int]:
    """This rank's micro-batches of one optimizer step as indices into `examples`, how many every rank is to have, and the tokens of all."""
    rank, world = rank_and_world()
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


class Plan:
    """Supervised stages: a seeded order over examples, `epochs` times, `batch_size` records per optimizer step over all ranks.

    Examples with the same prompt follow each other, so that a step computes it once for all of them; a reward model that meets the pairs of
    a prompt in one step also overfits less (Ouyang et al. 2022, arXiv 2203.02155, section 3.5).
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        epochs: float,
        max_steps: int | None,
        tokens_per_microbatch: int,
        seed: int,
        watcher: Watcher | None = None,
    ):
        self.examples, self.batch_size, self.budget, self.seed = examples, batch_size, tokens_per_microbatch, seed
        self.groups = by_prefix(examples)
        self.ordered: tuple[int, list[int]] = (-1, [])  # the epoch that was shuffled last, and its order
        self.per_epoch = steps.per_epoch(len(examples), batch_size)
        self.steps = steps.supervised(len(examples), batch_size, epochs, max_steps)
        self.taken = 0
        self.watcher = watcher
        if watcher:
            watcher.begin(self.steps)

    def metrics(self) -> dict[str, float]:
        return self.watcher.metrics() if self.watcher else {}

    def feedback(self, means: Mapping[str, float]) -> None:
        """The plan stands."""
        if self.watcher:
            self.watcher.step(means)

    def __iter__(self) -> Iterator[Step]:
        while self.taken < self.steps:
            if self.watcher:
                self.watcher.before(self.taken)
            chosen = self.chosen(self.taken)
            self.taken += 1
            yield make_step([self.examples[i] for i in chosen], self.budget)

    def chosen(self, step: int) -> list[int]:
        """Indices of the examples of one step."""
        epoch, index = divmod(step, self.per_epoch)
        return self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]

    def _order(self, epoch: int) -> list[int]:
        if self.ordered[0] != epoch:
            shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(self.groups))
            self.ordered = epoch, [i for g in shuffled for i in self.groups[g]]
        return self.ordered[1]

    def needed(self) -> list[int]:
        """Indices of all examples that the run looks at: fewer than there are where `max_steps` ends it before."""
        if self.steps >= self.per_epoch:
            return list(range(len(self.examples)))
        return sorted(i for step in range(self.steps) for i in self.chosen(step))

    def looks(self) -> Counter[int]:
        """How often this rank's steps take each example, by index."""
        found: Counter[int] = Counter()
        for step in range(self.steps):
            chosen = self.chosen(step)
            mine, *_ = dealt([self.examples[i] for i in chosen], self.budget)
            found.update(chosen[j] for items in mine for j in items)
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "watcher": self.watcher.state_dict() if self.watcher else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        if self.watcher:
            self.watcher.load_state_dict(state["watcher"])
