"""What a stage computes with, imported before memory is first read."""

from __future__ import annotations

import importlib
import pkgutil

from align import losses, measures, models, rendering, rl, sampling, training


def import_all() -> None:
    for room in (losses, models, measures, rendering, rl, sampling, training):
        for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            importlib.import_module(module.name)
