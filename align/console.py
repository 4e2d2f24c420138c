"""What a person sees in the terminal: one message and an exit code for everything that goes wrong, and lines of progress."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from align.errors import AlignError, Stopped


def say(line: str) -> None:
    """One line of progress on stderr, from the first process alone; in a terminal it takes the place of a line that is being redrawn."""
    if int(os.environ.get("RANK", "0")) == 0:
        on_stderr(("\r\x1b[K" if sys.stderr.isatty() else "") + line)


def on_stderr(text: str, end: str = "\n") -> None:
    """Print there; where nobody reads it any more, as after `2>&1 | head`, the work goes on without."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except BrokenPipeError:
        _to_nowhere(sys.stderr)


def _to_nowhere(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class Progress:
    """How far work on files is: a bar, files, bytes, rate and time left. Redrawn in a terminal, a line every 10 s elsewhere.

    Work that ends within the first second says nothing. Threads may report at once.
    """

    BAR = 16
    """Characters of the bar."""

    def __init__(self, title: str, files: int, size: int) -> None:
        self.title, self.files, self.size = title, files, size
        self.done = self.bytes = 0
        self.lock, self.redraw = threading.Lock(), sys.stderr.isatty()
        self.start = time.monotonic()
        self.due = self.start + 1.0
        self.drawn = self.stopped = False

    def stop(self) -> None:
        """Have every thread that reports further bytes fail, so that it ends what it is at."""
        self.stopped = True

    def add(self, size: int, files: int = 0) -> None:
        """`size` more bytes, and `files` that are whole now. Raises: InterruptedError after `stop`."""
        if self.stopped:
            raise InterruptedError(f"{self.title} was stopped")
        with self.lock:
            self.bytes += size
            self.done += files
            now, ended = time.monotonic(), bool(files) and self.done == self.files
            if now >= self.due or (ended and self.drawn):
                self.due = now + (0.2 if self.redraw else 10.0)
                self.drawn = True
                line, end = self.line(now - self.start), "\n" if ended or not self.redraw else ""
                on_stderr(("\r\x1b[K" if self.redraw else "") + line, end)

    def line(self, seconds: float) -> str:
        """How far it is after `seconds`."""
        share = self.bytes / max(self.size, 1)
        rate = self.bytes / max(seconds, 1e-9)
        bar = "█" * round(self.BAR * share)
        left = clock((self.size - self.bytes) / max(rate, 1e-9))
        sizes = f"{self.bytes / 1e6:,.1f}/{self.size / 1e6:,.1f} MB"
        return f"{self.title} {bar:░<{self.BAR}} {self.done:,}/{self.files:,} files · {sizes} · {rate / 1e6:,.1f} MB/s · {left} left"


def clock(seconds: float) -> str:
    """`0:05`, `12:30`, `3:05:00`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def guarded(body: Callable[[], None]) -> None:
    """Run a command; an error that a person can act on is printed as its message alone. Exits with 0, 1, 2 or 75.

    SIGTERM ends it as Ctrl-C does, so that what is unfinished is removed. What prints ends where nobody reads stdout any more.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? for the lines of a tree
    code = 0
    try:
        body()
    except AlignError as error:
        _flush_stdout()
        on_stderr(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        on_stderr("stopped; the same command goes on from what was done")
        code = Stopped.exit_code
    except BrokenPipeError:  # `align ls | head`; any other pipe or socket, as to a remote, is an error
        if not _reader_is_gone(sys.stdout):
            raise
    _flush_stdout()
    on_stderr("", end="")  # what libraries printed there may wait still
    if code:
        sys.exit(code)


def _flush_stdout() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _to_nowhere(sys.stdout)


def _reader_is_gone(stream: TextIO) -> bool:
    """Whether what is written there can reach no one. A pipe or a socket says so by itself (poll(2): POLLERR)."""
    watched = select.poll()
    watched.register(stream, 0)
    return any(events & select.POLLERR for _, events in watched.poll(0))
