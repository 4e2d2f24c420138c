"""The end of a process that stands within code of others: a thread that was left running, for which Python would wait,
for ever perhaps; a wait for another process, in which Python hears no signal; streams that nobody reads any more."""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from align.ground import ranks
from align.ground.errors import AlignError

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


def stopping_signals() -> list[signal.Signals]:
    """What asks a process to end, but for what it was started to ignore, as by nohup."""
    return [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]


class Interrupt(KeyboardInterrupt):
    """A signal to stop. Of a plain KeyboardInterrupt that passes through `exec` of a text, as in dataclasses, `python
    -m` ends by SIGINT, whatever exit code it is given."""


HEARD = threading.Event()
"""Whether an `Interrupt` was raised: the process is on its way out, whatever became of that."""
OTHERS = [sys.unraisablehook]
"""What tells of other errors that Python swallows."""


def hear() -> None:
    """From here on a signal to stop is an `Interrupt`; of SIGINT only where it is answered as Python answers it."""
    HEARD.clear()
    if sys.unraisablehook is not _unraisable:
        OTHERS[0], sys.unraisablehook = sys.unraisablehook, _unraisable
    as_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for number in (*([signal.SIGINT] if as_usual else []), *stopping_signals()):
        signal.signal(number, _interrupt)


def _interrupt(*_: object) -> None:
    HEARD.set()
    _pass(stopping_signals())  # it is on its way out
    raise Interrupt


def check_heard() -> None:
    """Raises: Interrupt, in the main thread, where one was raised before and was lost, as in a finaliser."""
    if HEARD.is_set() and threading.current_thread() is threading.main_thread():
        raise Interrupt


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """An Interrupt that is lost is raised again by what comes next (`check_heard`)."""
    if not issubclass(lost.exc_type, Interrupt):
        OTHERS[0](lost)


def deaf() -> None:
    """From here on no signal to stop is answered."""
    signals = (signal.SIGINT, *stopping_signals())
    _pass(signals)
    for number in signals:
        signal.signal(number, signal.SIG_IGN)


def _pass(signals: Iterable[signal.Signals]) -> None:
    """Answer these by nothing. Of one that has come already, and that its process is to ignore now, Python prints that
    there was a race."""
    for number in signals:
        signal.signal(number, lambda *_: None)


def wait_for_none(code: int, say: Callable[[str], None]) -> None:
    """Once all is done, said and flushed: where a thread of `LEFT` goes on, the process ends with `code` all the same,
    after what was registered to be done at its end; what is printed meanwhile answers nothing, and goes to stderr."""
    left = {thread: whose for thread, whose in LEFT.items() if thread.is_alive()}
    LEFT.clear()
    if left:
        os.dup2(2, 1)
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


STANDS = [25.0]
"""Seconds for which the main thread may stand at one place once the process is asked to stop: short of the 30 after
which launchers kill it, so that it says so itself."""
ASKS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK = 0.1
"""Seconds between two looks at where it stands."""


@contextmanager
def at_once(seconds: float = 1.0) -> Iterator[None]:
    """Here the process waits for others, and nothing is lost where it ends."""
    before, STANDS[0] = STANDS[0], seconds
    try:
        yield
    finally:
        STANDS[0] = before


def end_unheard(code: int, say: Callable[[], None]) -> None:
    """From here on, end with `code` where a signal to stop has come and the main thread goes on standing at one place:
    Python answers signals between two of its own steps, so never within a library that waits for a process which may
    have ended."""
    ears, mouth = os.pipe()
    os.set_blocking(mouth, False)
    signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(ears, code, say), daemon=True, name="signals").start()


def _listen(ears: int, code: int, say: Callable[[], None]) -> None:
    while came := os.read(ears, 1):
        stood = _place()
        since = time.monotonic()
        while came[0] in ASKS and stood == _place():
            time.sleep(LOOK)
            if time.monotonic() - since >= STANDS[0]:
                say()
                os._exit(code)


def _place() -> tuple[int, int]:
    """Where the main thread stands."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return (id(frame), frame.f_lasti) if frame else (0, 0)


def open_all() -> None:
    """Put /dev/null where stdin, stdout or stderr is closed: a file that is opened later would take its place, and what
    is printed."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", errors="replace", closefd=False))


def reader_is_gone(stream: TextIO) -> bool:
    """Whether what is written there can reach no one. A pipe or a socket says so by itself (poll(2): POLLERR)."""
    watched = select.poll()
    watched.register(stream, 0)
    return any(events & select.POLLERR for _, events in watched.poll(0))


def first_says_it(seconds: float = 20.0) -> bool:
    """Whether the first of torchrun's processes meets the same mistake and says so: its end ends the others. A mistake
    that this one meets alone is its own to tell."""
    if ranks.is_first():
        return False
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        return True
    return False


class Unwritable(AlignError):
    """What was printed did not arrive, as on a full disk."""


@contextmanager
def arriving(stream: TextIO) -> Iterator[None]:
    """Raises: Unwritable for what cannot be written; BrokenPipeError where nobody reads, which is no failure."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        to_nowhere(stream)  # what waits to be written would fail again
        raise Unwritable(f"stdout cannot be written ({error.strerror}).") from error


def to_nowhere(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def flush_stdout() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        to_nowhere(sys.stdout)
