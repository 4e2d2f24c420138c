"""What a person sees in the terminal: lines on stderr, and one message and an exit code for everything that goes
wrong."""

from __future__ import annotations

import errno
import gc
import io
import os
import re
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from align.ground import leaving, ranks
from align.ground.errors import AlignError, InputError, Stopped
from align.ground.paths import check_words

COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What a terminal takes for commands, and what shows text in another order than it stands in or breaks its line."""


def printable(text: str) -> str:
    """The text with `COMMANDS` as \\u001b, so that no terminal obeys it; inside JSON it stays the same text."""
    return COMMANDS.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)


def one_line(text: str) -> str:
    """`printable` and without line breaks, for a cell of a table."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def an(word: str) -> str:
    """The word behind the article that it takes."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def counted(number: int, what: str) -> str:
    """`1 rollout`, `2,000 rollouts`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


class Printable:
    """A stream to which nothing but `printable` text is written, by the thread that made it: what others print, as one
    that a judge left, goes to stderr. Raises: Unwritable where it cannot be."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self.thread:
            return sys.stderr.write(printable(text))
        with SCREEN.lock, leaving.arriving(self.stream):  # no line is drawn between the two
            SCREEN.wipe()
            return self.stream.write(printable(text))

    def flush(self) -> None:
        with SCREEN.lock, leaving.arriving(self.stream):
            SCREEN.wipe()
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Beside:
    """stderr of a terminal as all but `on_stderr` write to it: what they say begins on a line of its own, and is not
    erased where a line of ours is drawn again."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with SCREEN.lock:
            if text and not SCREEN.speaking:
                SCREEN.wipe()
                SCREEN.begun = not text.endswith("\n") and "\r" not in text  # a bar's line is drawn again as ours is
            return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def print_result(text: str, done: str) -> None:
    """Print what a command made. Raises: Unwritable where that did not arrive, which says what is `done`."""
    try:
        print(text, flush=True)
    except leaving.Unwritable as error:
        raise leaving.Unwritable(f"{error} {done}") from error


def say(line: str) -> None:
    """One line of progress on stderr, from the first process alone; in a terminal it takes the place of a line that is
    being redrawn."""
    if not ranks.is_first():
        return
    if SCREEN.overheard is not None:
        SCREEN.overheard.extend(line.splitlines())
    else:
        on_stderr(wrapped(line), redraw=redraws())


class Screen:
    """What stderr shows: whether a line stands there that is being redrawn, and when it was written to last."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal's handler may speak while this thread does
        self.drawn = False
        self.begun = False
        """A line of others stands there that they have not ended."""
        self.speaking = False
        self.closed = False
        """Nothing is drawn any more."""
        self.overheard: list[str] | None = None
        """Where what is said goes, instead of here."""
        self.spoken = time.monotonic()

    def wipe(self) -> None:
        """Take the drawn line away, so that other text can stand there."""
        if self.drawn:
            on_stderr("", end="")


SCREEN = Screen()


def redraws() -> bool:
    """Whether stderr is a terminal that can draw a line anew."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def columns_of_stderr() -> int:
    """Columns that a line may take: the last stays free, for some terminals begin the next line there."""
    return _columns_of(sys.stderr) - 1


def _columns_of(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def on_stderr(text: str, end: str = "\n", *, redraw: bool = False) -> None:
    """Print there, in the place of the line that is there now if `redraw`, or if that is drawn; where nobody reads it
    any more, as after `2>&1 | head`, the work goes on without."""
    with SCREEN.lock:
        before = "\r\x1b[K" if redraw or SCREEN.drawn else ""
        if SCREEN.begun and (text or end):
            SCREEN.begun, before = False, "\n"
        SCREEN.drawn, SCREEN.spoken, SCREEN.speaking = redraw and not end, time.monotonic(), True
        try:
            print(before + printable(text), end=end, file=_unguarded(sys.stderr), flush=True)
        except OSError:  # a pipe or a terminal that is closed
            leaving.to_nowhere(sys.stderr)
        finally:
            SCREEN.speaking = False


def _unguarded(stream: TextIO | Printable) -> TextIO:
    """What a guarded stream writes to, as stderr is one while a judge's code runs: a line is drawn by a command."""
    while isinstance(stream, Printable):
        stream = stream.stream
    return stream


NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
"""What a text is that was given for a path and can be none."""
ENDLESS = re.compile(r"\S{400,}")
"""What no message repeats to its end, such as a path of thousands of characters."""
NEXT = "next: "
"""How a line of commands to copy begins."""
GOES_ON = "stopped; the same command goes on from stages that are done and checkpoints, where there are some"
ANEW = "stopped; nothing unfinished is kept, so the same command starts anew"


def guarded(body: Callable[[], None], stopped: str = GOES_ON) -> None:
    """Run a command; an error that a person can act on is printed as its message alone, and `stopped` where it was
    stopped. Exits with 0, 1, 2 or 75.

    SIGTERM and SIGHUP (a terminal that is closed) end it as Ctrl-C does, so that what is unfinished is removed. What
    prints ends where nobody reads stdout any more. Nothing that is printed can command a terminal.
    """
    leaving.open_all()
    leaving.hear()
    if ranks.world() > 1:
        leaving.end_unheard(Stopped.exit_code, lambda: say(stopped))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? for the lines of a tree
    code, SCREEN.closed = 0, False
    try:
        beside: Any = Beside(sys.stderr) if redraws() else sys.stderr
        with redirect_stdout(Printable(sys.stdout)), redirect_stderr(beside), _closing():
            check_words(sys.argv[1:])
            body()
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        code = _end(error, stopped)
    with suppress(KeyboardInterrupt):  # all is done
        leaving.flush_stdout()
        on_stderr("", end="")  # what libraries printed there may wait still
        leaving.wait_for_none(code, say)
    gc.freeze()  # Python's end would look through all that torch and tokenizers hold, for a second and more
    if code:
        sys.exit(code)


def _end(error: Exception | KeyboardInterrupt, stopped: str) -> int:
    """Say how a command ended that did not do what it was asked for: its exit code."""
    if isinstance(error, KeyboardInterrupt) or (leaving.HEARD.is_set() and not isinstance(error, Stopped)):
        leaving.deaf()  # up to the end: Python's own exit would answer them otherwise
        say(stopped)
        return Stopped.exit_code
    if isinstance(error, AlignError):
        leaving.flush_stdout()
        if not (isinstance(error, InputError) and leaving.first_says_it()):
            tell = say if isinstance(error, Stopped) else on_stderr  # ranks stop together, and the first says so
            tell(_laid_out(str(error)))
        return error.exit_code
    # `align ls | head` has done what it could; any other pipe or socket, as to a remote, is an error
    if isinstance(error, BrokenPipeError) and leaving.reader_is_gone(sys.stdout):
        return 0
    on_stderr(_told(error))
    return InputError.exit_code if getattr(error, "errno", 0) in NO_PATH else AlignError.exit_code


@contextmanager
def overheard() -> Iterator[list[str]]:
    """The lines that are said inside, in place of saying them; work that takes a while is told of all the same."""
    lines: list[str] = []
    before, SCREEN.overheard = SCREEN.overheard, lines
    try:
        yield lines
    finally:
        SCREEN.overheard = before


@contextmanager
def _closing() -> Iterator[None]:
    """Nothing is drawn once the block has ended, also where it leaves work behind that did not."""
    try:
        yield
    finally:
        SCREEN.closed = True
        SCREEN.wipe()


def _laid_out(message: str) -> str:
    """A message without words of no end; in a terminal its lines break between words."""
    return wrapped(ENDLESS.sub(lambda word: f"{word[0][:200]}…", message))


def wrapped(text: str, stream: TextIO | None = None) -> str:
    """Text whose lines break between words where `stream`, stderr unless one is given, is a terminal, and go on below
    their last column or indented; what comes next, commands to copy, has a line for each, or lines that end in \\."""
    stream = stream or sys.stderr
    if not stream.isatty():
        return text
    columns = max(_columns_of(stream), 40)
    wrap = textwrap.TextWrapper(columns, break_long_words=False, break_on_hyphens=False)
    copied = textwrap.TextWrapper(
        columns - 2, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False
    )

    def laid(line: str) -> str:
        if line.startswith(NEXT):
            commands = line.replace(", or ", "\n   or ").split("\n")
            return "\n".join(" \\\n".join(copied.wrap(one)) if len(one) > columns else one for one in commands)
        gaps = [gap.end() for gap in re.finditer("  +", line[: columns // 2])]
        wrap.subsequent_indent = " " * (gaps[-1] if gaps else 2)
        return wrap.fill(line) if len(line) > columns else line

    return "\n".join(map(laid, text.split("\n")))


@contextmanager
def prose() -> Iterator[None]:
    """What is printed inside is `wrapped` for stdout."""
    if not sys.stdout.isatty():
        yield
        return
    try:
        with redirect_stdout(io.StringIO()) as said:
            yield
    finally:
        print(wrapped(said.getvalue(), sys.stdout), end="", flush=True)


def _told(error: Exception) -> str:
    """A file that cannot be used, in one line; of all else that nobody foresaw, the traceback."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        name = str(error.filename)
        return f"{name if len(name) <= 200 else name[:200] + '…'}: {error.strerror}."
    return traceback.format_exc().rstrip()
