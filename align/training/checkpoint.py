"""Checkpoints to go on from: when one is written, and that it is whole or not there.

A checkpoint is written below `unfinished/` and renamed once every file of it is on the disk. A run that is killed
meanwhile goes on from the one before; a half-written one is never read.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.ground.disk import sync_folder
from align.ground.errors import AlignError, Stopped
from align.ground.json import in_words
from align.ground.leaving import Interrupt, stopping_signals
from align.ground.terminal import on_stderr
from align.ground.wish import WISH
from align.training.processes import agree, rank_and_world

STATE = "history.json"
FIGURES = ("history", "tokens", "seconds", "sums", "logged", "total_loss")
"""What it holds of the run's figures, as the trainer calls them."""
GIVE_UP = "Give it up (`align gc --checkpoints --delete`), and the same command begins anew."
Handler = Callable[[int, FrameType | None], object] | int | None
"""What `signal.signal` takes and gives back."""


def unfinished(folder: Path) -> Path:
    """Where checkpoints are written before they are whole."""
    return folder / "unfinished"


def clear(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for path in unfinished(folder).glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The last whole checkpoint in `folder`, if there is one."""
    return max(folder.glob("checkpoint-*"), key=step_of, default=None)


def newest_step(folder: Path) -> int | None:
    """Of the last whole checkpoint in `folder`, if there is one."""
    last = newest(folder)
    return step_of(last) if last else None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def keep(folder: Path, step: int) -> None:
    """Make the checkpoint of `step`, written below `unfinished/`, the one to go on from, and remove those before it."""
    written, kept = unfinished(folder) / f"checkpoint-{step}", folder / f"checkpoint-{step}"
    for path in written.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sync_folder(written)
    os.replace(written, kept)
    sync_folder(folder)
    for old in folder.glob("checkpoint-*"):
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)


def read_state(folder: Path) -> dict[str, Any]:
    """Figures of a checkpoint, and what its checks saw. Raises: AlignError where an Align wrote it that kept less, and
    for one that is damaged."""
    try:
        saved: dict[str, Any] = json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise AlignError(f"{folder / STATE} is damaged ({in_words(error)}). {GIVE_UP}") from error
    if lacking := [name for name in (*FIGURES, "reach", "start") if name not in saved]:
        raise AlignError(
            f"{folder} was written by another version of Align: it holds no {' and no '.join(lacking)}, so this "
            f"run cannot go on from it. {GIVE_UP}"
        )
    if none := [name for name, value in saved.items() if value is None]:
        raise AlignError(f"{folder / STATE} is damaged: {none[0]} is null. {GIVE_UP}")
    return saved


def not_written(folder: Path, step: int, error: Exception) -> AlignError:
    """What to say when the checkpoint of `step` cannot be written; torch and safetensors have errors of their own for a
    full disk."""
    shutil.rmtree(unfinished(folder) / f"checkpoint-{step}", ignore_errors=True)
    last = newest(folder)
    kept = f"The one of step {step_of(last)} is kept" if last else "There is none before it"
    free = shutil.disk_usage(folder).free / 2**20
    what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return AlignError(
        f"{folder}: the checkpoint of step {step} cannot be written ({what}; {free:,.0f} MiB are free there). {kept}. "
        "Free some space and run the same command again, or set checkpoint_steps to 0 to write none."
    )


def cut_off(folder: Path, title: str) -> Stopped:
    """What to say where a run was stopped within a step: what is kept of it."""
    last = newest(folder)
    kept = (
        f"step {step_of(last)}, whose checkpoint is kept" if last else "its first step: no checkpoint was written yet"
    )
    return Stopped(f"{title} stopped at once; the same command goes on from {kept}.")


class Checkpoints(TrainerCallback):
    """Asks for a checkpoint every `steps` optimizer steps, after `minutes`, and at the end.

    Ctrl-C, SIGTERM or SIGHUP ends the run after the current step, with a checkpoint; a second one ends it at once.
    `steps` 0 writes none but that.
    """

    GRACE = 15.0
    """Seconds that one of torchrun's processes has to end by itself; torchrun gives it 30."""

    def __init__(self, steps: int, minutes: float):
        self.steps, self.seconds = steps, 60 * minutes
        self.asked = False
        self.timer: threading.Timer | None = None

    def __enter__(self) -> Checkpoints:
        self.before: dict[int, Handler] = {}
        with suppress(ValueError):  # not the main thread: signals stay with whoever owns them
            self.before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, *stopping_signals())}
        return self

    def __exit__(self, *_: object) -> None:
        WISH.stop = self.asked  # where every step was taken, nobody has heard of it yet
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.timer:
            self.timer.cancel()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise Interrupt
        self.asked = True
        if rank_and_world()[1] > 1:  # torchrun asks when another process has died, which nobody may wait for
            self.timer = threading.Timer(self.GRACE, os._exit, (Stopped.exit_code,))
            self.timer.daemon = True
            self.timer.start()
        on_stderr("stopping after this step; once more to stop at once")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.step, self.time = state.global_step, time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self.step, self.time = state.global_step, time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        waited = state.global_step - self.step >= self.steps or time.monotonic() - self.time >= self.seconds
        due = self.steps > 0 and (waited or state.global_step >= state.max_steps)
        stop, due = agree(self.asked, due)
        control.should_save = stop or due
        control.should_training_stop = control.should_training_stop or stop
