"""Trackers of transformers that `report_to` names: checked before anything is loaded, told our settings, their files
kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    WandbCallback,
    default_logdir,
    get_available_reporting_integrations,
)

from align.ground.json import Json
from align.ground.ranks import is_first
from align.ground.terminal import say
from align.training.telling import tracker_names

EVENTS = "runs"
"""Folder of what trackers write here, in the working folder, unless their own variables name another."""
WANDB_DIR = os.environ.get("WANDB_DIR")
"""Where the user wants wandb's files."""


@dataclass
class Arguments(TrainingArguments):
    """Trainer's arguments; every tracker is shown `settings` in their place."""

    settings: Json = field(default_factory=dict)

    def to_dict(self) -> Json:
        return self.settings

    @property
    def place_model_on_device(self) -> bool | None:
        """Trainer moves nothing where the base waits in CPU memory."""
        return False if self.settings.get("base_offload") else None


def check(names: Sequence[str]) -> None:
    """Raises: InputError for a tracker that transformers does not know, or that it finds is not installed."""
    tracker_names.check(names)
    for name in names:
        if name not in get_available_reporting_integrations():
            raise tracker_names.missing(name)


def flat(settings: Mapping[str, object], above: str = "") -> dict[str, int | float | str]:
    """Settings as a table has them: `adapter.rank`; what is neither number nor text as JSON."""
    found: dict[str, int | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{above}{key}.")
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            found[above + key] = value
        else:
            found[above + key] = json.dumps(value)
    return found


def summary(total_loss: float, seconds: float, steps: int) -> dict[str, float]:
    """Of a run that is done, also where it went on several times, under transformers' names. Left out: it takes a step
    for a sample, and no operations are counted."""
    return {
        "train_runtime": seconds,
        "train_steps_per_second": steps / max(seconds, 1e-9),
        "train_loss": total_loss / max(steps, 1),
    }


class HyperParameters(TrainerCallback):
    """Shows the settings in TensorBoard's HParams tab, beside the loss; transformers shows them as a text alone."""

    def __init__(self, board: TensorBoardCallback) -> None:
        self.board = board

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if (writer := self.board.tb_writer) is None:  # of ranks other than the first
            return
        assert isinstance(args, Arguments)
        # PyTorch's, or those of tensorboardX
        summaries = import_module(f"{type(writer).__module__.rpartition('.')[0]}.summary")
        for summary in summaries.hparams(flat(args.settings), {"train/loss": None}):
            writer.file_writer.add_summary(summary)


class Finish(TrainerCallback):
    """Ends wandb's run with the stage: it would take the next stage of a recipe for more of the same, and put its files
    in the same folder."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        wandb = import_module("wandb")
        wandb.finish()
        wandb.teardown()  # else it does not look at its variables again


def keep_events(trainer: Trainer, title: str) -> None:
    """Have trackers write where it outlives the run, and say where that is."""
    for callback in list(trainer.callback_handler.callbacks):
        if isinstance(callback, WandbCallback) and is_first():
            folder = Path(WANDB_DIR or Path(EVENTS, title).absolute())
            folder.mkdir(parents=True, exist_ok=True)
            os.environ["WANDB_DIR"] = str(folder)
            trainer.add_callback(Finish())
            say(f"{title}: wandb's files are in {folder / 'wandb'}")
        if isinstance(callback, TensorBoardCallback):
            root = Path(os.path.expanduser(callback.logging_dir or EVENTS)).absolute()
            callback.logging_dir = str(root / title / Path(default_logdir()).name)
            trainer.add_callback(HyperParameters(callback))
            say(f"{title}: TensorBoard's events are in {callback.logging_dir}")
            say(f"{title}: they are shown by tensorboard --logdir {root}")
