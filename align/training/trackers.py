"""Trackers of transformers that `report_to` names: checked before anything is loaded, told our settings, their files
kept."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    TensorBoardCallback,
    default_logdir,
    get_available_reporting_integrations,
)

from align.ground.errors import InputError
from align.ground.terminal import say

EVENTS = "runs"
"""Folder of TensorBoard's events, in the working folder, unless $TENSORBOARD_LOGGING_DIR names another."""


@dataclass
class Arguments(TrainingArguments):
    """Trainer's arguments; every tracker is shown `settings` in their place."""

    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return self.settings


def check(names: Sequence[str]) -> None:
    """Raises: InputError for a tracker that transformers does not know, or whose package is not installed."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, 1, 0.75)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(INTEGRATION_TO_CALLBACK))}."
            raise InputError(f"report_to: {name} is no tracker of transformers; {hint}")
        if name not in get_available_reporting_integrations():
            raise InputError(f"report_to: the package of {name} is not installed here. Install it, or leave it out.")


def keep_events(callbacks: Iterable[TrainerCallback], title: str) -> None:
    """Have TensorBoard write where its events outlive the run, and say where that is."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            root = Path(os.path.expanduser(callback.logging_dir or EVENTS)).absolute()
            callback.logging_dir = str(root / title / Path(default_logdir()).name)
            say(f"{title}: TensorBoard's events are in {callback.logging_dir}; tensorboard --logdir {root}")
