"""What a person sees in the terminal: one message and an exit code for everything that goes wrong, and lines of progress."""

from __future__ import annotations

import os
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
    """How far a transfer of files is: a line at its end, and one every two seconds before. Threads may report at once."""

    def __init__(self, title: str, files: int, size: int) -> None:
        self.title, self.files, self.size = title, files, size
        self.lock, self.said, self.done, self.bytes = threading.Lock(), time.monotonic(), 0, 0

    def add(self, size: int, files: int = 0) -> None:
        """`size` more bytes, and `files` that are whole now."""
        with self.lock:
            self.bytes += size
            self.done += files
            if (files and self.done == self.files) or time.monotonic() - self.said > 2:
                self.said = time.monotonic()
                say(f"{self.title}: {self.done} of {self.files} files, {self.bytes / 1e6:,.1f} of {self.size / 1e6:,.1f} MB")


def guarded(body: Callable[[], None]) -> None:
    """Run a command; an error that a person can act on is printed as its message alone. Exits with 0, 1, 2 or 75."""
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
