"""Ranks: which of torchrun's processes this one is, as its environment says; alone, it is the first of one."""

from __future__ import annotations

import os
import signal
import threading
import time

from align.ground.errors import InputError

GONE = "another process of the run has ended"
"""What a process says that misses one."""
LATE = "the run has waited for process"
"""How a process begins to say that one of the others does not come."""
LAUNCHER = "ALIGN_LAUNCHER"
"""The number of the process that started this one as one of several."""
STRAGGLER_TIMEOUT = "ALIGN_STRAGGLER_TIMEOUT"
"""Seconds for which the others may wait for a process that lives; 0: for ever."""
LONGEST = 1800
"""What that is where nobody says: torch's own patience on a CPU. Answers that are long on one process take minutes."""
SHORTEST = 3
"""Below it one look would decide."""


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that speaks and names."""
    return rank() == 0


def commits() -> bool:
    """Whether this process is the one that looks and commits: the first, or the only one, whatever its rank is said to
    be."""
    return is_first() or world() == 1


def on_this_machine() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world()))


def local_rank() -> int | None:
    """Which of this machine's processes it is; None where torchrun started none."""
    given = os.environ.get("LOCAL_RANK")
    return None if given is None else int(given)


def straggler_timeout() -> float:
    """Raises: InputError for what the environment says, as `checked_timeout`."""
    return checked_timeout(os.environ.get(STRAGGLER_TIMEOUT, str(LONGEST)), STRAGGLER_TIMEOUT)


def checked_timeout(given: str, name: str) -> float:
    """Seconds that the others wait for a process that lives; 0 is for ever.

    Raises: InputError for what is no number of seconds, or so few that a process which waits itself would seem late.
    """
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if seconds == 0 or seconds >= SHORTEST:
        return seconds
    raise InputError(f"{name} {given}: expected at least {SHORTEST} seconds, or 0 to wait for ever.")


def follow_launcher() -> None:
    """Once the process that launched this one is gone, as `kill -9` takes it, this one is asked to stop."""
    if launcher := os.environ.pop(LAUNCHER, ""):  # what this one starts has another parent
        threading.Thread(target=_follow, args=(int(launcher),), daemon=True, name="launcher").start()


def _follow(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
