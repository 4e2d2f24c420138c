"""The heap while many objects are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def set_aside() -> Iterator[None]:
    """What is there when the block begins is not looked through for cycles while it lasts: modules and models are there
    for good, and Python would go through them all again whenever the block's own objects have grown by a quarter. Where
    somebody set them aside before, they stay so."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
