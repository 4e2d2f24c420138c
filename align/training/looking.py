"""Looks at what is held out, between the steps of a run: they are logged, they choose which weights are kept, and they
may end it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.training.steps import Watcher
from align.training.weights import Best

if TYPE_CHECKING:
    from align.training.trainer import StageTrainer

SHOWN = ("eval_loss", "eval_accuracy")
"""Figures of the newest look that stand in the line of progress, by the names that trackers get."""


class Looking(TrainerCallback):
    """Has a watcher look before the first step and after each, before what is said, logged and saved of it; so a
    checkpoint holds what was found."""

    def __init__(self, trainer: StageTrainer, watcher: Watcher, best: Best):
        self.trainer, self.watcher, self.best = trainer, watcher, best

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
        found = self.watcher.look(step)
        if found:
            self.trainer.note({f"eval/{name}": value for name, value in found.items()})
            self.trainer.log({f"eval_{name}": value for name, value in found.items()})
            control.should_log = due  # which transformers takes for done whenever anything is logged
            if self.watcher.best == step < state.max_steps:
                self.best.keep(step)

    def restore(self) -> None:
        """After the last step: go back to the weights that are to be kept."""
        best = self.watcher.best
        if best is not None and best != self.trainer.state.global_step:
            self.best.restore(best)
