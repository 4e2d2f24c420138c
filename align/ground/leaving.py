"""The end of a process in which code of others left a thread running: Python would wait for it, for ever perhaps."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE = 5.0
"""Seconds that such threads have to end by themselves, as those of a pool do once nothing is left to do."""
LEFT: dict[threading.Thread, str] = {}
"""Threads that Python would wait for, and whose code started them."""


@contextmanager
def threads_of(whose: str) -> Iterator[None]:
    """Code of others runs here: threads that it starts and leaves are its own."""
    before = set(threading.enumerate())
    try:
        yield
    finally:
        for thread in set(threading.enumerate()) - before:
            if not thread.daemon:
                LEFT.setdefault(thread, whose)


def wait_for_none(code: int, say: Callable[[str], None]) -> None:
    """Once all is done and said: where a thread of `LEFT` goes on, the process ends with `code` all the same, after
    what was registered to be done at its end."""
    left = {thread: whose for thread, whose in LEFT.items() if thread.is_alive()}
    LEFT.clear()
    if left:
        threading.Thread(target=_leave, args=(left, code, say), daemon=True, name="leaving").start()


def _leave(left: dict[threading.Thread, str], code: int, say: Callable[[str], None]) -> None:
    time.sleep(GRACE)
    going_on = dict.fromkeys(whose for thread, whose in left.items() if thread.is_alive())
    if going_on:
        say(f"{' and '.join(going_on)} left a thread running; Align ends without it")
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
