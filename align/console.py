"""What a person sees in the terminal: one message and an exit code for everything that goes wrong, and lines of progress."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from align.errors import AlignError, Stopped


def say(line: str) -> None:
    """One line of progress on stderr, from the first process alone; in a terminal it takes the place of a line that is being redrawn."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(("\r\x1b[K" if sys.stderr.isatty() else "") + line, file=sys.stderr, flush=True)


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
                print(("\r\x1b[K" if self.redraw else "") + line, end=end, file=sys.stderr, flush=True)

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

    SIGTERM ends it as Ctrl-C does, so that what is unfinished is removed.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? for the lines of a tree
    try:
        body()
    except AlignError as error:
        sys.stdout.flush()
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what was done", file=sys.stderr)
        sys.exit(Stopped.exit_code)
    except BrokenPipeError:  # `align ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
