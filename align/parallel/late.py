"""A process of the run that lives and does not come where the others wait for it: its judge hangs, or its file system
does not answer. It is named, with the line that it stands at, and the run ends.

torch counts in every process its exchanges with the others. Who waits has begun one that the late one has not, whose
number stays behind. A thread of each tells its number to all, by the store where they meet, and looks at theirs. Looks
are counted, not seconds, so that a machine that slept has not waited.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from align.ground import ranks
from align.ground.terminal import on_stderr

_exit = os._exit  # as it is while no judge is called, which may not end the process
LOOK = 1.0
"""Seconds between two looks."""
AFTER = 10
"""Looks by which all but the first wait longer: what that one says, a person reads."""
FRAMES = 3
"""Innermost lines of the late process that are shown."""

_held: list[int] = []
"""What a patient process tells in place of its number."""


@contextmanager
def patiently() -> Iterator[None]:
    """Inside, this process waits for work that another does for all, however long that takes: it does not seem to have
    come."""
    _held.append(_number())
    try:
        yield
    finally:
        _held.clear()


def watch(patience: timedelta) -> None:
    """From here on, where the processes are about to meet, end the run once one keeps the others waiting."""
    limit = ranks.straggler_timeout()
    if not limit:
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = ranks.is_first() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    # the one that torch makes next, which would wait for all to come
    store = dist.TCPStore(address, port, None, serves, patience, wait_for_workers=False, multi_tenant=True)
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(store, limit, done), daemon=True, name="late")
    thread.start()

    def end() -> None:
        done.set()
        thread.join(2 * LOOK)

    atexit.register(end)


def _watch(store: dist.Store, limit: float, done: threading.Event) -> None:
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = [f"late/{start}/{rank}" for rank in range(ranks.world())]
    late = Late(limit / LOOK + (0 if ranks.is_first() else AFTER))
    try:
        while not done.wait(LOOK):
            number = _number()
            number = next(iter(_held), number)  # read after it: who is patient by then has begun no other exchange
            store.set(keys[ranks.rank()], json.dumps([number, _standing()]))
            said: list[tuple[int, str]] = [
                json.loads(store.get(key)) if store.check([key]) else (-1, "") for key in keys
            ]
            rank = late.look([number for number, _ in said]) if said[0][0] >= 0 else None
            if rank is not None:
                _end(rank, limit, said[rank][1])
    except RuntimeError:  # the first has ended, and with it the store
        return


def _number() -> int:
    """How many exchanges this process has begun, the one at which all meet included."""
    if not dist.is_initialized():
        return 0
    group: Any = dist.distributed_c10d._get_default_group()
    return 1 + int(group._get_sequence_number_for_group())


class Late:
    """For how many looks in a row each is behind without an exchange of its own; `limit` are too many."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.before: list[int] = []
        self.looks: list[int] = []

    def look(self, numbers: list[int]) -> int | None:
        """The rank that is too late, by the exchanges that each has begun."""
        before, looks = self.before or numbers, self.looks or [0] * len(numbers)
        each = zip(numbers, before, looks, strict=True)
        self.looks = [n + 1 if now == then and now < max(numbers) else 0 for now, then, n in each]
        self.before = numbers
        return next((rank for rank, n in enumerate(self.looks) if n >= self.limit), None)


def _standing() -> str:
    """The innermost lines that this process's main thread stands at."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = traceback.extract_stack(frame)[-FRAMES:] if frame else []
    return ", called at ".join(f"{line.filename}:{line.lineno} in {line.name} ({line.line})" for line in stack[::-1])


def _end(rank: int, limit: float, at: str) -> None:
    """This process, whose main thread waits where no error reaches it."""
    where = f"It stands at {at}" if at else "It has not come to where all meet"
    on_stderr(
        f"{ranks.LATE} {rank} of {ranks.world()} for {limit:g} seconds (--straggler-timeout). {where}. The same "
        "command goes on from what was done."
    )
    _exit(1)
