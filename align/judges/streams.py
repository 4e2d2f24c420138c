"""stdout and stderr while a judge's code runs: what it prints goes to stderr, and what it closes is given back."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from typing import Any

from align.ground.terminal import SCREEN, Printable, printable, say

SAID: set[str] = set()
"""Judges of which it was said that they close streams."""


@contextmanager
def streams_kept(name: str) -> Iterator[None]:
    """Where the code of the judge `name` runs. What it closed is open again afterwards, and is said once."""
    drawn = Drawn(sys.stderr) if sys.stderr else None
    kept = [_Kept(stream) for stream in (sys.__stdout__, sys.__stderr__) if _is_file(stream)]
    try:
        with _on_stderr(drawn):
            yield
    finally:
        given_back = [stream.give_back() for stream in kept]
        if (any(given_back) or (drawn and drawn.closed)) and name not in SAID:
            SAID.add(name)
            say(f"{name} closed stdout or stderr, which Align goes on with: they are open again")


def _is_file(stream: object) -> bool:
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() in (1, 2)
    except ValueError:  # closed, or none of the system's files
        return False


class _Kept:
    """A stream of this process, and a second descriptor of its file."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.number = stream, stream.fileno()
        self.spare = os.dup(self.number)
        self.how = {
            "encoding": stream.encoding,
            "errors": stream.errors,
            "line_buffering": stream.line_buffering,
            "write_through": stream.write_through,
        }

    def give_back(self) -> bool:
        """Open it again where it was closed, in place, since others hold it too. Whether it was."""
        closed = not _is_file(self.stream) or not _is_open(self.number)
        if closed:
            os.dup2(self.spare, self.number)
        if not _is_file(self.stream):
            self.stream.__init__(open(self.number, "wb", closefd=False), **self.how)  # noqa: SIM115
        os.close(self.spare)
        return closed


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


@contextmanager
def _on_stderr(drawn: Drawn | None) -> Iterator[None]:
    """stdout, which is for what Align answers, leads to stderr, for child processes too; what the judge itself prints
    cannot command a terminal."""
    with redirect_stderr(drawn) if drawn else nullcontext(), _stdout_led():
        yield


class Drawn(Printable):
    """`Printable`, but for the carriage returns by which bars are drawn; closed it is for the judge alone."""

    closed = False

    def write(self, text: str) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        with SCREEN.lock:
            SCREEN.wipe()
            return self.stream.write("\r".join(map(printable, text.split("\r"))))

    def flush(self) -> None:
        if not self.closed:
            super().flush()

    def close(self) -> None:
        self.closed = True

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


@contextmanager
def _stdout_led() -> Iterator[None]:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        os.fstat(2)
        kept = os.dup(1)
    except OSError:  # one of them is closed, or nobody reads it
        with redirect_stdout(sys.stderr):
            yield
        return
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
