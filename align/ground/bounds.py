"""Limits of time and memory for code that anyone may have written, such as a chat template, which runs in this
process."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

SECONDS, BYTES = 5.0, 2 << 30
"""Of CPU time and of memory beyond what the process has; a long dialogue takes milliseconds and megabytes."""
STATM = Path("/proc/self/statm")
"""Where Linux says how much memory a process has."""


class Unbounded(Exception):
    """It took more than `SECONDS`, or more than `BYTES`."""


TICKS = 5
"""In how many parts `SECONDS` are counted inside `bounded_each`."""


class _Watch:
    """How often the timer of a `bounded_each` has ticked, and at which tick the block inside that runs began."""

    ticks = 0
    begun: int | None = None

    def tick(self, *_: object) -> None:
        self.ticks += 1
        if self.begun is not None and self.ticks - self.begun > TICKS:
            _stop()

    def __enter__(self) -> None:
        self.begun = self.ticks

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.begun = None
        if isinstance(error, MemoryError):
            raise _too_large() from error


_watches: list[_Watch] = []
"""That of the `bounded_each` that runs."""


def bounded() -> AbstractContextManager[None]:
    """Run the block within `SECONDS` and `BYTES`. Raises: Unbounded."""
    return _watches[-1] if _watches else _alone()


@contextmanager
def _alone() -> Iterator[None]:
    with _within_seconds(), _within_bytes():
        yield


@contextmanager
def bounded_each() -> Iterator[None]:
    """Every `bounded` block inside shares one timer, counted in parts, and one limit of memory: setting them takes
    longer than a short dialogue does."""
    if _watches or threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch()
    before: Any = signal.signal(signal.SIGVTALRM, watch.tick)
    _watches.append(watch)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS / TICKS, SECONDS / TICKS)
        with _within_bytes():
            yield
    finally:
        _watches.remove(watch)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _within_seconds() -> Iterator[None]:
    """Outside the main thread, where no signal arrives, without a limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.signal(signal.SIGVTALRM, _stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _within_bytes() -> Iterator[None]:
    """Where the system does not say how much memory a process has, as on macOS, without a limit."""
    if not STATM.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(STATM.read_bytes().split()[0]) * resource.getpagesize() + BYTES
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    except MemoryError as error:
        raise _too_large() from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _too_large() -> Unbounded:
    return Unbounded(f"it took more than {BYTES >> 30} GiB of memory")


def _stop(*_: object) -> None:
    raise Unbounded(f"it ran for more than {SECONDS:g} s of CPU time")
