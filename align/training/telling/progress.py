"""The line of progress of a stage that trains: step, time left, metrics, rate."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean
from typing import Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.ground.progress import Work, clock, remaining

FEWEST = 3
"""Steps before there is an estimate of the time left."""
RECENT = 50
"""Periods whose mean is taken for those to come."""


class Steps(Work):
    """Optimizer steps under way. `period` steps take about the same time again and again: one, or those of a rollout,
    the first of which waits for its samples.

    The time left is that of the periods to come, by the mean of the last ones. The first period, in which much happens
    that does not happen again, counts only while it is the only one.
    """

    stays = True

    def __init__(self, title: str, total: int, first: int = 0, period: int = 1) -> None:
        super().__init__(title, total)
        self.done, self.first, self.period = float(first), first, period
        self.figures: dict[str, float] = {}
        self.marks: deque[float] = deque([self.start], RECENT + 1)
        self.periods = 0
        self.over = False
        """Whether no more steps come, be they all taken or not."""
        self.told = True  # however quick it is

    def step(self, done: int) -> None:
        """So many steps are done."""
        with self.lock:
            self.done = float(done)
            if (done - self.first) % self.period == 0:
                self.marks.append(time.monotonic())
                self.periods += 1

    def left(self, now: float) -> float | None:
        """Seconds that the rest takes, about; None where that is not known yet."""
        if self.done - self.first < FEWEST or not self.periods:
            return None
        marks = list(self.marks)
        took = [later - earlier for earlier, later in pairwise(marks)]
        usual = fmean(took[1:] if self.periods <= RECENT and len(took) > 1 else took)
        whole = (self.total - self.first) / self.period - self.periods  # periods to come, the one in progress included
        return max(0.0, (whole - 1) * usual) + max(0.0, min(whole, 1.0) * usual - (now - marks[-1]))

    def parts(self, seconds: float) -> list[str]:
        ended, taken = self.over or self.done >= self.total, self.done - self.first
        left = self.left(self.start + seconds)
        rate = taken / max(seconds, 1e-9)
        return [
            f"{self.done:.0f}/{self.total:.0f}",
            *([clock(seconds)] if ended or left is None else remaining(left)),
            *(f"{name} {value:.3f}" for name, value in self.figures.items()),
            *([f"{rate:.2f} steps/s"] if taken else []),
        ]


class ProgressLine(TrainerCallback):
    """Tells of the steps within its block, with the figures of `show`; the last line stays."""

    def __init__(self, title: str, show: tuple[str, ...] = (), period: int = 1):
        self.title, self.show, self.period = title, ("loss", *show), period
        self.steps: Steps | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.steps = Steps(self.title, state.max_steps, state.global_step, self.period)
        self.steps.__enter__()

    def shows(self, figures: Mapping[str, float]) -> None:
        """These are the newest figures."""
        if self.steps:
            found = self.steps.figures | dict(figures)
            self.steps.figures = {name: found[name] for name in self.show if name in found}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self.steps:
            self.steps.step(state.global_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """No more steps come, whether or not all were taken."""
        if self.steps:
            self.steps.over = True
            self.steps.__exit__()
