"""Looks at held-out records while a run trains: when one is due, which was the best, and how long none was better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Row = Mapping[str, float]
"""What a look found: `step`, how many steps were done; `loss`, and what else was measured."""


class LookSettings(Protocol):
    """The settings of a stage that say when it looks, and what follows from it."""

    @property
    def eval_steps(self) -> int | None: ...
    @property
    def eval_epochs(self) -> float | None: ...
    @property
    def keep(self) -> Literal["last", "best"]: ...
    @property
    def patience(self) -> int | None: ...
    @property
    def min_delta(self) -> float: ...


@dataclass(frozen=True)
class Schedule:
    """When a run of `steps` steps is looked at: before its first and after its last step, and in between every so many;
    without `every` once, half way."""

    steps: int
    every: float | None

    def due(self, step: int) -> bool:
        """Whether to look when so many steps are done."""
        if step in (0, self.steps):
            return True
        return step == self.steps // 2 if self.every is None else self._passed(step) > self._passed(step - 1)

    def _passed(self, step: int) -> int:
        assert self.every is not None
        return math.floor(step / self.every + 1e-9)  # a third of an epoch of 300 steps is no whole number in binary

    def count(self) -> int:
        """Looks after the first step."""
        return sum(map(self.due, range(1, self.steps + 1)))

    def __str__(self) -> str:
        if self.every is None:
            return "at the start, half way and at the end"
        return f"at the start, every {'step' if self.every == 1 else f'{self.every:g} steps'} and at the end"


def schedule(config: LookSettings, steps: int, per_epoch: int) -> Schedule:
    """The looks that a stage's settings ask for."""
    return Schedule(steps, config.eval_steps if config.eval_epochs is None else config.eval_epochs * per_epoch)


def trained(rows: Iterable[Row]) -> list[Row]:
    """Looks at something that was trained."""
    return [row for row in rows if row["step"]]


def best(rows: Iterable[Row]) -> Row | None:
    """The look with the lowest loss, of equals the first; what is no number is lower than nothing."""
    return min(trained(rows), key=lambda row: (math.isnan(row["loss"]), row["loss"]), default=None)


def waited(losses: Sequence[float], min_delta: float) -> int:
    """Looks since the last that was better than the best before it by more than `min_delta`, as transformers'
    `EarlyStoppingCallback` counts them: a smaller gain is a new best, but resets nothing."""
    lowest, count = math.inf, 0
    for i, loss in enumerate(losses):
        count = 0 if i == 0 or lowest - loss > min_delta else count + 1
        lowest = min(lowest, loss)
    return count
