"""Libraries of the `clean` extra, loaded when they are first needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from align.ground.errors import InputError

EXTRA = "pip install 'align-rlhf[clean]'"


def library(name: str, what: str) -> ModuleType:
    """The module. Raises: InputError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if name.partition(".")[0] != (error.name or "").partition(".")[0]:
            raise
        raise InputError(f"{what} needs {name.partition('.')[0]}, which is not installed: {EXTRA}.") from error
