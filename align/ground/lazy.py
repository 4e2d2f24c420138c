"""Modules of a room that load on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType


def modules(room: str) -> Callable[[str], ModuleType]:
    """A room's `__getattr__` (PEP 562). Raises: AttributeError for what is no module of it."""

    def get(name: str) -> ModuleType:
        if name.startswith("_") or find_spec(f"{room}.{name}") is None:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return importlib.import_module(f"{room}.{name}")

    return get
