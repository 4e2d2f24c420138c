"""What every step measured, told to people who look on while the run goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.store import News
from align.training.telling.progress import ProgressLine

OFTEN, SHARE = 0.2, 1000
"""Seconds between two lines, at least: these, and one of so many parts of the time since the start. So the file of a
long run stays small, and its curves are as fine as a screen shows."""


class Reporter(TrainerCallback):
    """Writes `figures` after steps, and what the trainer logs beside them.

    Args:
        line: knows how much time is left.
        figures: what the newest step measured, and the source's own.
    """

    def __init__(self, news: News, line: ProgressLine, figures: Callable[[], Mapping[str, float]]):
        self.news, self.line, self.figures = news, line, figures
        self.start = self.due = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.news.train(state.max_steps, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        now = time.monotonic()
        if now >= self.due or state.global_step >= state.max_steps:
            self.due = now + max(OFTEN, (now - self.start) / SHARE)
            self.news.step(state.global_step, self._left(now), self.figures())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        known = self.figures().keys() | {"epoch", "total_flos"}
        more = {k: v for k, v in (logs or {}).items() if k not in known and not k.startswith("train_")}
        if more:
            self.news.step(state.global_step, self._left(time.monotonic()), more)

    def _left(self, now: float) -> float | None:
        return self.line.steps.left(now) if self.line.steps else None
