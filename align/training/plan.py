"""The plan of a supervised stage: a seeded order over examples, cut into optimizer steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict, cast

import numpy as np

from align.data import steps
from align.data.examples import Example
from align.ground.json import Json
from align.packed.pack import by_prefix
from align.training.steps import OptimizerStep, Watcher, dealt, make_step
from align.training.whole_step import Prepare, Remembering


class PlanState(TypedDict):
    """What a checkpoint keeps of a plan: steps taken, the watcher's own state, and what is carried between steps."""

    taken: int
    watcher: Json
    carried: Json


class Plan:
    """Supervised stages: a seeded order over examples, `epochs` times, `batch_size` records per optimizer step over all
    ranks.

    Examples with the same prompt follow each other, so that a step computes it once for all of them; a reward model
    that meets the pairs of a prompt in one step also overfits less (Ouyang et al. 2022, arXiv 2203.02155, section 3.5).
    `prepare` fills the examples of a step just before it is taken; `carried` is what that remembers.
    """

    period = 1

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
        prepare: Prepare | None = None,
        carried: Remembering | None = None,
    ):
        self.examples, self.batch_size, self.budget, self.seed = examples, batch_size, tokens_per_microbatch, seed
        self.groups = by_prefix(examples)
        self.ordered: tuple[int, list[int]] = (-1, [])  # the epoch that was shuffled last, and its order
        self.per_epoch = steps.per_epoch(len(examples), batch_size)
        self.steps = steps.supervised(len(examples), batch_size, epochs, max_steps)
        self.taken = 0
        self.watcher, self.prepare, self.carried = watcher, prepare, carried
        if watcher:
            watcher.begin(self.steps, self.per_epoch)

    def metrics(self) -> dict[str, float]:
        return self.watcher.metrics() if self.watcher else {}

    def feedback(self, means: Mapping[str, float]) -> None:
        """The plan stands."""
        if self.watcher:
            self.watcher.step(means)

    def __iter__(self) -> Iterator[OptimizerStep]:
        while self.taken < self.steps and not (self.watcher and self.watcher.ended):
            step, chosen = self.taken, self.chosen(self.taken)
            self.taken += 1
            examples = [self.examples[i] for i in chosen]
            yield make_step(self.prepare(examples, step) if self.prepare else examples, self.budget)

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

    def state_dict(self) -> PlanState:
        return {
            "taken": self.taken,
            "watcher": dict(self.watcher.state_dict()) if self.watcher else {},
            "carried": dict(self.carried.state_dict()) if self.carried else {},
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        saved = cast(PlanState, state)
        self.taken = saved["taken"]
        if self.watcher:
            self.watcher.load_state_dict(saved["watcher"])
        if self.carried:
            self.carried.load_state_dict(saved["carried"])
