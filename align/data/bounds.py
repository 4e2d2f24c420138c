"""Limits of time and memory for code that anyone may have written, such as a chat template, which runs in this process."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECONDS, BYTES = 5.0, 2 << 30
"""Of CPU time and of memory beyond what the process has; a long dialogue takes milliseconds and megabytes."""
PAGE = resource.getpagesize()


class Unbounded(Exception):
    """It took more than `SECONDS`, or more than `BYTES`."""


@contextmanager
def bounded() -> Iterator[None]:
    """Run the block within `SECONDS` and `BYTES`; outside the main thread, where no signal arrives, without a limit of time.

    Raises: Unbounded.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", "rb") as file:
        limit = int(file.read().split()[0]) * PAGE + BYTES
    timed = threading.current_thread() is threading.main_thread()
    before: Any = signal.signal(signal.SIGVTALRM, _stop) if timed else None
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        if timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        yield
    except MemoryError as error:
        raise Unbounded(f"it took more than {BYTES >> 30} GiB of memory") from error
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _stop(*_: object) -> None:
    raise Unbounded(f"it ran for more than {SECONDS:g} s of CPU time")
