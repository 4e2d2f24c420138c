"""One line of progress on stderr while a stage trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.ground.terminal import clock, on_stderr
from align.training.processes import rank_and_world


class ProgressLine(TrainerCallback):
    """One line on stderr: step, loss, rate, time left. Redrawn in a terminal, every 30 s elsewhere."""

    def __init__(self, title: str, show: tuple[str, ...] = ()):
        self.title, self.show = title, ("loss", *show)
        self.latest: dict[str, float] = {}
        self.redraw = sys.stderr.isatty()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.start, self.first, self.printed = time.monotonic(), state.global_step, 0.0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        self.latest.update(logs or {})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
        now = time.monotonic()
        if state.global_step < state.max_steps and now - self.printed >= (0.2 if self.redraw else 30.0):
            self.printed = now
            self._print(state, "" if self.redraw else "\n")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._print(state, "\n")

    def _print(self, state: TrainerState, end: str) -> None:
        if rank_and_world()[0]:
            return
        rate = (state.global_step - self.first) / max(time.monotonic() - self.start, 1e-9)
        parts = [f"{k} {self.latest[k]:.3f}" for k in self.show if k in self.latest]
        left = clock((state.max_steps - state.global_step) / max(rate, 1e-9))
        line = " · ".join(
            [f"{self.title} {state.global_step}/{state.max_steps}", *parts, f"{rate:.2f} steps/s", f"{left} left"]
        )
        on_stderr(line, end, redraw=self.redraw)
