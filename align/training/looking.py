"""Looks at what is held out, between the steps of a run: they are logged, they choose which weights are kept, and they
may end it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.training.steps import Watcher
from align.training.weights import Best

SHOWN = ("eval/loss", "eval/accuracy")
"""Figures of the newest look that stand in the line of progress."""


class Looking(TrainerCallback):
    """Has a watcher look before the first step and after each, before what is said, logged and saved of it; so a
    checkpoint holds what was found. `tell` puts figures into the log, and inside `averaged` the weights are those that
    come out."""

    def __init__(
        self,
        watcher: Watcher,
        best: Best,
        tell: Callable[[Mapping[str, float]], None],
        averaged: Callable[[], AbstractContextManager[None]],
    ):
        self.watcher, self.best, self.tell, self.averaged = watcher, best, tell, averaged

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step == 0:
            self._look(state, control)
        else:
            self.best.named(self.watcher.best)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._look(state, control)
        if self.watcher.ended:  # this was the last one: it is logged and saved as that
            state.max_steps = state.global_step
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self.best.named(self.watcher.best)

    def _look(self, state: TrainerState, control: TrainerControl) -> None:
        step, due = state.global_step, control.should_log
        with self.averaged():
            found = self.watcher.look(step)
            if found:
                self.tell(found)
                control.should_log = due  # which transformers takes for done whenever anything is logged
                if self.watcher.best == step < state.max_steps:
                    self.best.keep(step)

    def restore(self, step: int) -> None:
        """After the last step, of this number: go back to the weights that are to be kept."""
        best = self.watcher.best
        if best is not None and best != step:
            self.best.restore(best)
