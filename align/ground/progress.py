"""Work that takes a while, told on stderr: what is under way, how far it is, and how long it will take still.

One line for the innermost piece of work. A terminal has it redrawn within its width, twice a second, and wiped when
the work is done. A pipe, a file or a notebook gets whole lines, ever fewer: the first after 1 s of silence, the next
after 5, then 10, 20, 40, and one a minute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Protocol, Self, TypeVar
from unicodedata import combining, east_asian_width

from align.ground import ranks
from align.ground.leaving import check_heard
from align.ground.terminal import SCREEN, columns_of_stderr, on_stderr, redraws

AT_ONCE = 0.5
"""Seconds that work may take without a word."""
REDRAW = 0.5
"""Seconds between two drawings of a line."""
SOON = 0.1
"""Seconds after a drawing in which work that begins waits for the next one."""
FIRST, SECOND, MOST = 1.0, 5.0, 60.0
"""Seconds of silence after which a line is written where nothing is redrawn: of the first line, of the next, and at
most."""
NEWS = 5.0
"""Seconds between two times that others are told how far a piece of work is."""
SETTLED = 2.0
"""Seconds after which a rate says something of the time left."""
BAR = 16
"""Characters of a bar."""

T_co = TypeVar("T_co", covariant=True)


class Many(Sized, Iterable[T_co], Protocol[T_co]):
    """What can be counted and gone through."""


class Work:
    """A piece of work, told while the block lasts. `total` is how much there is to do, where that is known, in `unit`;
    threads may report what is done at once."""

    stays = False
    """Whether its last line stays to be read."""
    heard: Callable[[str], None] | None = None
    """Who else is told, now and then, of the task that is under way in it: how far that is, and "" where none is."""

    def __init__(self, title: str, total: float = 0, unit: str = "") -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0.0
        self.lock = threading.Lock()
        self.start = time.monotonic()
        self.told = False
        self.written: float | None = None
        """What was done when a line was last written that stands."""

    def __enter__(self) -> Self:
        check_heard()
        _TELLER.begin(self)
        return self

    def __exit__(self, *_: object) -> None:
        _TELLER.end(self)

    def add(self, amount: float = 1) -> None:
        """So much more is done."""
        with self.lock:
            self.done += amount

    @property
    def share(self) -> float | None:
        """How much of it is done, from 0 to 1; None where that is not known."""
        return min(1.0, self.done / self.total) if self.total else None

    def parts(self, seconds: float) -> list[str]:
        """What is told after so many seconds, what matters most first."""
        rate = self.done / max(seconds, 1e-9)
        if not self.total:
            return [f"{self.done:,.0f} {self.unit}".rstrip(), clock(seconds)] if self.done else [clock(seconds)]
        known = remaining((self.total - self.done) / rate) if self.done and seconds >= SETTLED else [clock(seconds)]
        return [
            f"{self.done:,.0f}/{self.total:,.0f} {self.unit}".rstrip(),
            *known,
            *([f"{rate:,.3g}/s" if rate < 100 else f"{rate:,.0f}/s"] if self.done else []),
        ]

    def line(self, now: float, columns: int | None) -> str:
        """How far it is, in at most so many columns."""
        return fitted(self.title, self.parts(now - self.start), self.share, columns)


class Task(Work):
    """A part of the work that it stands in, whose title its own begins with; told only there, so that what samples for
    a stage says so and what samples for a dialogue does not."""


class Progress(Work):
    """How far work on files is: bytes, time left, files, rate. Threads may report at once."""

    stays = True

    def __init__(self, title: str, files: int, size: int) -> None:
        super().__init__(title, size)
        self.files, self.whole, self.stopped = files, 0, False

    def stop(self) -> None:
        """Have every thread that reports further bytes fail, so that it ends what it is at."""
        self.stopped = True

    def add(self, amount: float = 1, files: int = 0) -> None:
        """`amount` more bytes, and `files` that are whole now. Raises: InterruptedError after `stop`."""
        if self.stopped:
            raise InterruptedError(f"{self.title} was stopped")
        with self.lock:
            self.done += amount
            self.whole += files

    def parts(self, seconds: float) -> list[str]:
        rate, left = self.done / max(seconds, 1e-9), self.total - self.done
        ended = self.whole == self.files
        known = left / rate if self.done and seconds >= SETTLED else None
        return [
            f"{self.done / 1e6:,.1f}/{self.total / 1e6:,.1f} MB",
            *([clock(seconds)] if ended else remaining(known)),
            f"{self.whole:,}/{self.files:,} files",
            f"{rate / 1e6:,.1f} MB/s",
        ]


def each(title: str, items: Many[T_co], unit: str) -> Iterator[T_co]:
    """The items one by one, told as a part of the work, on so many."""
    with Task(title, len(items), unit) as work:
        for item in items:
            yield item
            work.add()


def clock(seconds: float) -> str:
    """`0:05`, `12:30`, `3:05:00`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


def remaining(seconds: float | None) -> list[str]:
    """`0:05 left`; nothing where it is not known."""
    return [] if seconds is None else [f"{clock(max(seconds, 0.0))} left"]


def cells(text: str) -> int:
    """Columns of a terminal that text takes: two for wide characters (Unicode's East Asian width), none for marks."""
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, columns: int) -> str:
    """The beginning of the text, with … where it does not fit."""
    if cells(text) <= columns:
        return text
    while text and cells(text) >= columns:
        text = text[:-1]
    return f"{text}…"


def fitted(title: str, parts: Sequence[str], share: float | None = None, columns: int | None = None) -> str:
    """Title, a bar for `share`, and the parts; what does not fit is left out: the bar first, then parts from the
    end."""
    bar = "" if share is None else f"{'█' * round(BAR * share):░<{BAR}} "
    whole = f"{title} {bar}{' · '.join(parts)}"
    if columns is None or cells(whole) <= columns:
        return whole
    for count in range(len(parts), 0, -1):
        if cells(line := f"{title} {' · '.join(parts[:count])}") <= columns:
            return line
    return cut(f"{cut(title, max(columns - cells(parts[0]) - 1, 8))} {parts[0]}", columns)


class _Teller:
    """Tells of the innermost work, from a thread that lives as long as there is any."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None
        self.silence = FIRST
        self.news, self.passed_on = "", 0.0
        """What others were told last, and when."""

    def begin(self, work: Work) -> None:
        if not ranks.is_first():
            return
        with self.changed:
            if isinstance(work, Task):
                if not self.works:
                    return
                work.title = f"{self._whole().title}: {work.title}"
            self.works.append(work)
            if self.thread is None:
                self.silence = FIRST
                self.thread = threading.Thread(target=self._run, daemon=True, name="progress")
                self.thread.start()
            # what comes may hold all threads up, as libraries do while they are loaded
            if redraws() and not SCREEN.closed and time.monotonic() - SCREEN.spoken >= SOON * SCREEN.drawn:
                on_stderr(cut(f"{work.title} …", columns_of_stderr()), end="", redraw=True)

    def end(self, work: Work) -> None:
        with self.changed:
            if work not in self.works:
                return
            self.works.remove(work)
            self.changed.notify()
            if work.stays and work.told and (redraws() or not work.done == work.written == work.total):
                on_stderr(work.line(time.monotonic(), columns_of_stderr() if redraws() else None))
            elif not self.works:
                SCREEN.wipe()

    def _run(self) -> None:
        with self.changed:
            while self.works:
                self.tell(time.monotonic())
                self.changed.wait(REDRAW)
            self.thread = None

    def tell(self, now: float) -> None:
        """Say how far the innermost work is, if it is time to."""
        work = self.works[-1]
        if SCREEN.closed or now - self.works[0].start < AT_ONCE:
            return
        self._pass_on(work, now)
        if redraws():
            on_stderr(work.line(now, columns_of_stderr()), end="", redraw=True)
        elif now - SCREEN.spoken >= self.silence:
            work.written = work.done
            on_stderr(work.line(now, None))
            self.silence = min(max(2 * self.silence, SECOND), MOST)
        else:
            return
        work.told = True

    def _whole(self) -> Work:
        """The innermost work that is no part of another."""
        return next(work for work in reversed(self.works) if not isinstance(work, Task))

    def _pass_on(self, work: Work, now: float) -> None:
        whole = self._whole()
        if whole.heard is None or now - self.passed_on < NEWS:
            return
        title = work.title.removeprefix(f"{whole.title}: ")
        news = "" if work is whole else fitted(title, work.parts(now - work.start))
        self.passed_on = now
        if news != self.news:
            self.news = news
            whole.heard(news)


_TELLER = _Teller()
