"""A prompt in a terminal, or lines in a pipe: what is typed there, and what Ctrl-C does."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from align.ground.leaving import Interrupt
from align.ground.terminal import on_stderr, say


class Interrupted(Exception):
    """Ctrl-C, at a place where work may end."""


class Interrupts:
    """What Ctrl-C does: at the prompt it ends what reads there; during work it is noted, and `check` raises it where
    work may end, never amid a computation. A second one does not wait for that."""

    def __init__(self) -> None:
        self.pressed, self.at_prompt = 0, False

    def __call__(self, number: int, _: object) -> None:
        self.pressed += 1
        if self.at_prompt or self.pressed > 1:
            raise KeyboardInterrupt

    @contextmanager
    def prompting(self) -> Iterator[None]:
        self.pressed, self.at_prompt = 0, True
        try:
            yield
        finally:
            self.at_prompt = False

    def check(self) -> None:
        """Raises: Interrupted."""
        if self.pressed:
            self.pressed = 0
            raise Interrupted


@contextmanager
def listening(interrupts: Interrupts) -> Iterator[None]:
    """Ctrl-C does what they say inside, unless we were started to ignore it, as behind `&`."""
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupts)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def read_line(interrupts: Interrupts) -> str | None:
    """The next line that says something; None at the end, and after Ctrl-C twice. A line in another encoding is left
    out, and that is said."""
    talks = sys.stdin.isatty()
    with suppress(ImportError):  # not every Python has it
        if talks:
            import readline  # noqa: F401  lines can be edited, and earlier ones called back
    warned = False
    while True:
        prompt = "> " if talks else ""
        if prompt and not sys.stdout.isatty():  # answers go to a file, and this does not
            on_stderr(prompt, end="")
            prompt = ""
        try:
            with interrupts.prompting():
                line = input(prompt).rstrip()
        except Interrupt:  # SIGTERM, or the terminal is closed
            raise
        except KeyboardInterrupt:  # it may have been meant for an answer that had just ended
            if talks:
                on_stderr("")
            if warned or not talks:
                return None
            say("Ctrl-C once more to leave; /save FILE keeps what was said")
            warned = True
            continue
        except EOFError:
            if talks:
                on_stderr("")
            return None
        if not is_text(line):
            say("a line that is no UTF-8 was left out; type or send text in UTF-8")
            continue
        if line:
            return line


def is_text(line: str) -> bool:
    """Whether it was read without bytes that its encoding does not know, for which Python puts lone surrogates (PEP
    383)."""
    return not any("\ud800" <= character <= "\udfff" for character in line)
