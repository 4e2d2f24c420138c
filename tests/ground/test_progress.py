"""Lines of progress as a terminal of some width, a pipe and a log file get them. The truth is a terminal of the
kernel's (pty), whose lines are laid out by hand."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from itertools import pairwise

import pytest

from align.ground import progress, terminal
from align.ground.errors import AlignError
from align.ground.parallel import in_parallel
from align.ground.progress import Progress, Task, Work, cells, clock, cut, each, fitted
from tests.conftest import ROOT


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, in its only element; nothing is told but by hand."""
    seconds = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    monkeypatch.setattr(progress, "FIRST", 5.0)
    monkeypatch.setattr(progress, "_TELLER", progress._Teller())
    monkeypatch.setattr(terminal.SCREEN, "closed", False)
    monkeypatch.setattr(terminal.SCREEN, "spoken", 100.0)
    return seconds


def report(now: list[float], monkeypatch: pytest.MonkeyPatch, to: io.StringIO, step: float) -> str:
    """Four files of 2 MB, one every `step` seconds."""
    monkeypatch.setattr(sys, "stderr", to)
    with Progress("push", 4, 8_000_000) as work:
        for _ in range(4):
            now[0] += step
            work.add(2_000_000, 1)
            progress._TELLER.tell(now[0])
    return to.getvalue()


def test_a_terminal_gets_one_line_redrawn(now: list[float], monkeypatch: pytest.MonkeyPatch):
    """By hand: 2 MB each 4 s are 0.5 MB/s; 6, 4, 2 and 0 MB are left. The last line stays and says how long it took."""
    text = report(now, monkeypatch, Terminal(), 4.0)
    at_once, first, *_, last = text.split("\r\x1b[K")[1:]
    assert at_once == "push …"
    assert first == "push ████░░░░░░░░░░░░ 2.0/8.0 MB · 0:12 left · 1/4 files · 0.5 MB/s"
    assert last == "push ████████████████ 8.0/8.0 MB · 0:16 · 4/4 files · 0.5 MB/s\n"
    assert text.count("\n") == 1


def test_a_log_gets_few_lines(now: list[float], monkeypatch: pytest.MonkeyPatch):
    """The first after 5 s of silence, the next after 10, whole and without an escape code; and the last."""
    lines = report(now, monkeypatch, io.StringIO(), 6.0).splitlines()
    assert [line.split()[2] for line in lines] == ["2.0/8.0", "6.0/8.0", "8.0/8.0"]
    assert not re.search(r"[\r\x1b]", "".join(lines))


def test_a_log_is_told_the_end_once(now: list[float], monkeypatch: pytest.MonkeyPatch):
    """Where a line that is due says that all is done, none says so again. By hand: 15 s are above 5, 15 more above 10,
    15 more below 20, all 30 above it. Negative control: of a terminal's last line only the work itself knows."""
    lines = report(now, monkeypatch, io.StringIO(), 15.0).splitlines()
    assert [line.split()[2] for line in lines] == ["2.0/8.0", "4.0/8.0", "8.0/8.0"]
    assert report(now, monkeypatch, Terminal(), 15.0).count("8.0/8.0 MB") == 2


def test_quick_work_leaves_nothing(now: list[float], monkeypatch: pytest.MonkeyPatch):
    assert report(now, monkeypatch, Terminal(), 0.1) == "\r\x1b[Kpush …\r\x1b[K"
    assert report(now, monkeypatch, io.StringIO(), 0.1) == ""


def test_a_failure_ends_what_is_under_way():
    """A thread that would report for ten seconds more ends when another one fails, and the failure is what is
    raised."""
    work, begun = Progress("push", 3, 10_000), time.monotonic()

    def report_on(item: str) -> None:
        if item == "fails":
            raise AlignError("the network is gone")
        while time.monotonic() < begun + 10:
            work.add(1)
            time.sleep(0.001)

    with pytest.raises(AlignError, match="the network is gone"):
        in_parallel(report_on, ["works", "works too", "fails"], work.stop)
    assert time.monotonic() < begun + 5


def test_an_hour_in_a_log_is_a_line_a_minute(now: list[float], monkeypatch: pytest.MonkeyPatch):
    """5 + 10 + 20 + 40 s, then every 60 s: 3,525 s after them are 58 lines more. What others say counts as a word."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Work("train"):
        for _ in range(2 * 3600):
            now[0] += 0.5
            progress._TELLER.tell(now[0])
    assert sys.stderr.getvalue().count("\n") == 4 + 58
    with Work("train"):
        for second in range(60):
            now[0] += 1
            if second % 4 == 0:
                terminal.say("a step")
            progress._TELLER.tell(now[0])
    assert sys.stderr.getvalue().count("\n") == 4 + 58 + 15


def test_the_innermost_work_is_told(now: list[float], monkeypatch: pytest.MonkeyPatch):
    """Reading rows inside of a stage; once they are read, the stage again. An estimate waits until it means
    something."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    told = []

    def tell() -> None:
        now[0] += 1
        sys.stderr.seek(0)
        sys.stderr.truncate()
        progress._TELLER.tell(now[0])
        told.append(sys.stderr.getvalue().removeprefix("\r\x1b[K"))

    with Work("sft"):
        tell()
        for _ in each("reading", range(4), "rows"):
            tell()
        tell()
    assert told[0] == "sft 0:01" and told[-1] == "sft 0:06"
    assert told[1] == "sft: reading ░░░░░░░░░░░░░░░░ 0/4 rows · 0:01"
    assert told[3] == "sft: reading ████████░░░░░░░░ 2/4 rows · 0:03 left · 0.667/s"
    sys.stderr = Terminal()
    assert list(each("reading", range(4), "rows")) == [0, 1, 2, 3]
    assert sys.stderr.getvalue() == "" and not progress._TELLER.works  # a part of no work is not told


def test_what_fits():
    """By hand. The bar goes first, then parts from the end, then the middle of the title; wide characters take two
    columns."""
    parts = ["3/9 rows", "0:05 left", "9/s"]
    assert fitted("sft", parts, 1 / 3, 60) == "sft █████░░░░░░░░░░░ 3/9 rows · 0:05 left · 9/s"
    assert fitted("sft", parts, 1 / 3, 30) == "sft 3/9 rows · 0:05 left · 9/s"
    assert fitted("sft", parts, 1 / 3, 29) == "sft 3/9 rows · 0:05 left"
    assert fitted("a-long-name", parts, 1 / 3, 19) == "a-long-na… 3/9 rows"
    assert (cells("日本e\u0301"), cut("日本語", 4), cut("日本語", 6)) == (5, "日…", "日本語")
    for columns in range(9, 70):
        assert cells(fitted("日本語日本語", parts, 0.5, columns)) <= columns


def test_clock():
    assert [clock(seconds) for seconds in (0.4, 65, 3600)] == ["0:00", "1:05", "1:00:00"]


PROGRAM = """
import sys
import time
from align.ground import progress
from align.ground.progress import Progress, Work
from align.ground.terminal import guarded, say
progress.AT_ONCE = progress.REDRAW = 0.05
def body():
    with Work("stage-of-a-recipe/with-a-long-name-of-its-own"):
        time.sleep(0.3)
        say("a sentence")
        with Progress("stage-of-a-recipe/with-a-long-name-of-its-own: reading", 30, 30_000_000) as work:
            for _ in range(30):
                time.sleep(0.02)
                work.add(1_000_000, 1)
        print("a result")
        time.sleep(0.2)
guarded(body)
"""


def in_terminal(program: str, columns: int, **environment: str) -> list[tuple[float, str]]:
    """What a program writes to a terminal of so many columns, with the second since its start."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"} | environment
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", program], stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    found = []
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the last writer is gone
            break
        if not part:
            break
        found.append((time.monotonic() - begun, part.decode()))
    os.close(master)
    assert process.wait(60) == 0
    return found


def rows(written: str) -> list[str]:
    """What stands in each line when all is written, and every drawing that was replaced: split where the line is wiped
    or ends."""
    return [row for row in re.split(r"\r\x1b\[K|\r\n", written) if row]


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_no_line_is_wider_than_the_terminal(columns: int):
    """Nothing but wiping a line is asked of the terminal, no drawing wraps, and what is printed stands alone in its
    line."""
    written = "".join(part for _, part in in_terminal(PROGRAM, columns))
    assert set(re.findall(r"\x1b\[[^A-Za-z]*[A-Za-z]", written)) == {"\x1b[K"}
    drawn = rows(written)
    assert max(map(cells, drawn)) < columns and len(drawn) > 10
    assert "a sentence" in drawn and "a result" in drawn
    wide = [row for row in drawn if "░" in row]
    assert bool(wide) == (columns > 100)  # a bar where there is room for one; else what it says is there all the same
    assert any("reading" in row and " MB" in row for row in drawn)
    assert written.endswith("\r\x1b[K")  # nothing of the drawn line is left


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}])
def test_no_escape_code_reaches_what_cannot_obey_it(environment: dict[str, str]):
    """A pipe, and a terminal that says it is dumb."""
    if environment:
        written = "".join(part for _, part in in_terminal(PROGRAM, 80, **environment))
    else:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, check=True)
        written = done.stdout + done.stderr
    assert "\x1b" not in written and sorted(written.split()) == ["a", "a", "result", "sentence"]


def test_what_others_print_begins_on_a_line_of_its_own():
    """A library that writes to stderr while a line is drawn there, of itself, by logging and in parts, which no drawing
    erases; a bar that it redraws is no such line. Negative control: a stream that knows of no line, as before."""
    library = """
        import logging
        print("lib: a line", file=sys.stderr)
        time.sleep(0.2)
        logging.basicConfig(format="lib: %(message)s")
        logging.warning("of a logger")
        time.sleep(0.2)
        print("lib: on stdout")
        time.sleep(0.2)
        sys.stderr.write("lib: half a ")
        sys.stderr.write("line")
        time.sleep(0.2)
        sys.stderr.write("\\rlib: 10%")
        time.sleep(0.2)
        sys.stderr.write("\\rlib: 20%\\n")
"""
    program = PROGRAM.replace('        print("a result")\n', library)
    assert program != PROGRAM
    told = ["lib: a line", "lib: of a logger", "lib: on stdout", "lib: half a line", "lib: 20%"]

    def heard(program: str) -> list[str]:
        drawn = [row.rpartition("\r")[2] for row in rows("".join(part for _, part in in_terminal(program, 80)))]
        return [row for row in drawn if "lib" in row and row != "lib: 10%"]

    assert heard(program) == told
    glued = program.replace("guarded(body)", "terminal.Beside = lambda stream: stream\nguarded(body)")
    glued = glued.replace("from align.ground import", "from align.ground import terminal,")
    assert heard(glued) != told  # on a busy machine some of them find no line there, but not all


def test_there_is_always_a_word():
    """Half a minute of work of several kinds, ten times as fast: a word within 0.2 s of the start and every 0.5 s, with
    calls that say nothing themselves in between. Negative control: without work there is none."""
    program = PROGRAM.replace("time.sleep(0.3)", "time.sleep(1.5)")
    at = [second for second, _ in in_terminal(program, 80)]
    assert max(later - earlier for earlier, later in pairwise(at)) < 0.5
    silent = program.replace("with Work(", "import contextlib\n    with contextlib.nullcontext(")
    at = [second for second, _ in in_terminal(silent, 80)]
    assert at[0] > 1.5


def test_others_are_told_of_the_task_under_way(now: list[float], monkeypatch: pytest.MonkeyPatch):
    """Every five seconds, of the innermost work alone; nothing is said twice. Controls: work that no one else hears of
    within it, and the end of the task."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    heard: list[str] = []

    def passes(seconds: int) -> None:
        for _ in range(2 * seconds):
            now[0] += 0.5
            progress._TELLER.tell(now[0])

    with Work("recipe"), Work("recipe/pairs") as stage:
        stage.heard = heard.append
        with Task("sampling", 40, "answers") as task:
            for _ in range(4):
                task.add(5)
                passes(5)
        with Work("steps"):
            passes(10)
        passes(10)
    assert heard == [
        "sampling 5/40 answers · 0:00 · 10/s",
        "sampling 10/40 answers · 0:16 left · 1.82/s",
        "sampling 15/40 answers · 0:18 left · 1.43/s",
        "sampling 20/40 answers · 0:16 left · 1.29/s",
        "",
    ]
