"""What is told of a run to people who look on while it goes: how far it is, and the rows of its history."""

from __future__ import annotations

import time
from collections.abc import Mapping

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.store import News
from align.training.telling.progress import ProgressLine

OFTEN, SHARE = 0.2, 1000
"""Seconds between two lines of a kind, at least: these, and one of so many parts of the time since the start. So the
file of a long run stays small, and its curves are as fine as a screen shows."""


class Reporter(TrainerCallback):
    """Tells after steps how far it is, and the figures of rows of the history as these are written: the points that
    people see meanwhile are those that they see when the run is done, under their names.

    Args:
        line: shows figures too, and knows how much time is left.
    """

    def __init__(self, news: News, line: ProgressLine):
        self.news, self.line = news, line
        self.start = time.monotonic()
        self.due = {"steps": self.start, "figures": self.start}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.news.train(state.max_steps, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._is_due("steps") or state.global_step >= state.max_steps:
            self.news.step(state.global_step, self._left(), {})

    def tell(self, step: int, figures: Mapping[str, float], *, always: bool = False) -> None:
        """Tell figures of a step, unless those of another one have just been."""
        self.line.shows(figures)
        if always or self._is_due("figures"):
            self.news.step(step, self._left(), figures)

    def _is_due(self, what: str) -> bool:
        now = time.monotonic()
        if now < self.due[what]:
            return False
        self.due[what] = now + max(OFTEN, (now - self.start) / SHARE)
        return True

    def _left(self) -> float | None:
        return self.line.steps.left(time.monotonic()) if self.line.steps else None
