"""Ranks: which of torchrun's processes this one is, as its environment says; alone, it is the first of one."""

from __future__ import annotations

import os


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that speaks, commits and names."""
    return rank() == 0 or world() == 1


def local_rank() -> int | None:
    """Which of this machine's processes it is; None where torchrun started none."""
    given = os.environ.get("LOCAL_RANK")
    return None if given is None else int(given)
