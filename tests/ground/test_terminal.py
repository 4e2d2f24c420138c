"""What a command says and how it ends, as a terminal and a log file get it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.ground import leaving, terminal
from align.ground.errors import Stopped
from tests.conftest import ROOT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_as_ctrl_c_does(number: signal.Signals):
    # in short sleeps: a signal that comes just before one begins is answered after it
    work = "lambda: print('ready', flush=True) or [time.sleep(0.1) for _ in range(600)]"
    program = f"import time; from align.ground.terminal import guarded; guarded({work})"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert (
        process.communicate(timeout=60)[1]
        == "stopped; the same command goes on from stages that are done and checkpoints, where there are some\n"
    )
    assert process.returncode == Stopped.exit_code


@pytest.mark.parametrize("ignored", [False, True])
def test_two_signals_at_once_end_a_command_as_one_does(ignored: bool):
    """As where a shell ends with what it is told to kill. The control ignores what has come already, of which Python
    says that there was a race."""
    both = "{signal.SIGTERM, signal.SIGHUP}"
    work = f"signal.pthread_sigmask(signal.SIG_BLOCK, {both})\nfor s in {both}: os.kill(os.getpid(), s)\n"
    work += f"signal.pthread_sigmask(signal.SIG_UNBLOCK, {both})\ntime.sleep(60)"
    program = "import os, signal, time\nfrom align.ground import leaving\nfrom align.ground.terminal import guarded\n"
    if ignored:
        program += "leaving._pass = lambda them: [signal.signal(s, signal.SIG_IGN) for s in them]\n"
    program += f"guarded(lambda: exec({work!r}))"
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == Stopped.exit_code and ("race" in ended.stderr) == ignored
    assert (
        ignored
        or ended.stderr
        == "stopped; the same command goes on from stages that are done and checkpoints, where there are some\n"
    )


LOST = {
    "in a finaliser": "class Lost:\n    def __del__(self): os.kill(os.getpid(), signal.SIGINT); time.sleep(0)\nLost()",
    "in an import": "try: os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"
    "except BaseException as error: raise ImportError('broken') from error",
    "none": "raise ImportError('broken')",
    "another error": "class Lost:\n    def __del__(self): raise ValueError('mine')\nLost()",
}
"""Where Ctrl-C comes -> what happens then."""


@pytest.mark.parametrize("comes", LOST)
def test_an_interrupt_that_is_lost(comes: str):
    """Python swallows it in a finaliser, libraries take it for an error of an import: the command ends all the same,
    by what comes next, as it does elsewhere. The controls are such an error by itself, and one in a finaliser, of which
    Python tells as ever."""
    body = f"{LOST[comes]}\nwith Work('more'): print('went on')"
    program = (
        "import os, signal, time\nfrom align.ground.progress import Work\nfrom align.ground.terminal import guarded\n"
    )
    program += f"guarded(lambda: exec({body!r}, globals()))"
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    stopped = "stopped; the same command goes on from stages that are done and checkpoints, where there are some\n"
    if comes == "none":
        assert ended.returncode == 1 and "ImportError: broken" in ended.stderr
    elif comes == "another error":
        assert (ended.returncode, ended.stdout) == (0, "went on\n") and "ValueError: mine" in ended.stderr
    else:
        assert (ended.returncode, ended.stdout, ended.stderr) == (Stopped.exit_code, "", stopped)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, None])
def test_a_signal_amid_exec_ends_with_75(number: signal.Signals | None, tmp_path: Path):
    """As while a library is imported that makes data classes. The control is Python's own KeyboardInterrupt there, of
    which `python -m` dies by SIGINT, whatever code it is given."""
    comes = f"import os, time; os.kill(os.getpid(), {number and int(number)}); time.sleep(60)"
    (tmp_path / "works.py").write_text(
        "from align.ground.terminal import guarded\n"
        f"guarded(lambda: exec({comes if number else 'raise KeyboardInterrupt'!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    ended = subprocess.run([sys.executable, "-m", "works"], env=environment, timeout=60, stderr=subprocess.PIPE)
    assert ended.returncode == (Stopped.exit_code if number else -signal.SIGINT)
    assert (
        ended.stderr
        == b"stopped; the same command goes on from stages that are done and checkpoints, where there are some\n"
    )


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_closed(nohup: bool, tmp_path: Path):
    """A dropped connection ends a command with 75, though nobody reads its last words; under nohup (the control) the
    work goes on."""
    work = f"[say('step') or time.sleep(0.1) for _ in range(30)] and open({str(tmp_path / 'out')!r}, 'w').write('done')"
    program = (
        "import fcntl, signal, sys, termios, time; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from "
        "align.ground.terminal import guarded, say\n"
    )
    program += f"{'signal.signal(signal.SIGHUP, signal.SIG_IGN)' if nohup else ''}\nguarded(lambda: {work})"
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    shown = b""
    while b"step" not in shown:
        shown += os.read(master, 100)
    os.close(master)
    assert process.wait(timeout=60) == (0 if nohup else Stopped.exit_code)
    assert (tmp_path / "out").exists() == nohup


BODY = """
import sys
from align.ground.terminal import guarded, say
def body():
    for i in range(300):
        say("step " * 60)
    open(sys.argv[1], "w").write("done")
    {last}
guarded(body)
"""


DONE, FAILS, REMOTE = "print('name digest')", "raise ConnectionError('gone')", "raise BrokenPipeError('of a remote')"


@pytest.mark.parametrize(
    ("last", "code", "ends"),
    [
        *((DONE, 0, ends) for ends in ("2>&1 | head -1", "2> >(head -1 >&2)", "| true", "2>&1 | true")),
        *((FAILS, 1, ends) for ends in ("2>&1 | head -1", "2> >(head -1 >&2)", "| true", "2>&1 | true")),
        *((REMOTE, 1, ends) for ends in ("| cat", "2> >(head -1 >&2)")),
    ],
)
def test_work_goes_on_where_nobody_reads(last: str, code: int, ends: str, tmp_path: Path):
    """Lines of progress are lost, the work and its exit code are not. Negative control: work that fails, also on
    another broken pipe."""
    out = tmp_path / "out"
    script = f'{sys.executable} -c "$0" {out} {ends}; exit ${{PIPESTATUS[0]}}'
    found = subprocess.run(["bash", "-c", script, BODY.format(last=last)], capture_output=True, text=True, timeout=60)
    assert (found.returncode, out.read_text()) == (code, "done"), found.stderr


def test_what_prints_ends_where_nobody_reads():
    program = (
        "from align.ground.terminal import guarded; guarded(lambda: [print('row ' * 99, flush=True) for _ in "
        "range(9999)] and print('end'))"
    )
    script = f'{sys.executable} -c "$0" | head -1; exit ${{PIPESTATUS[0]}}'
    found = subprocess.run(["bash", "-c", script, program], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stderr, found.stdout.count("\n")) == (0, "", 1)


def test_a_file_that_cannot_be_used_is_one_line():
    """By the system's own words, and as bad input where no path can be so; any other error that nobody foresaw (the
    control) keeps its traceback."""
    for body, lines, code, end in (
        ("open('x' * 5000)", 1, 2, "…: File name too long."),
        ("[][1]", 9, 1, "IndexError: list index out of range"),
    ):
        program = f"from align.ground.terminal import guarded; guarded(lambda: {body})"
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert found.returncode == code and found.stderr.splitlines()[-1].endswith(end)
        assert (len(found.stderr.splitlines()) == 1) == (lines == 1)


def test_a_terminal_without_unicode():
    program = "from align.ground.terminal import guarded; guarded(lambda: print('└─ data'))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment).stdout == b"?? data\n"


@pytest.mark.parametrize("at_once", [True, False])
def test_a_second_signal_changes_nothing(at_once: bool):
    """Also one that comes while Python ends, which takes a second here."""
    body = "lambda: print('ready', flush=True) or [time.sleep(0.1) for _ in range(600)]"
    program = (
        "import atexit, time; from align.ground.terminal import guarded; atexit.register(time.sleep, 1); "
        f"guarded({body})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    said = "" if at_once else process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    said += process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (
        Stopped.exit_code,
        "stopped; the same command goes on from stages that are done and checkpoints, where there are some\n",
    )


def shell(program: str, ends: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    script = f'{sys.executable} -c "$0" {ends}'
    words = ["bash", "-c", script, program]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=folder, env=os.environ | environment)


@pytest.mark.parametrize(("ends", "out"), [("2>&-", "row\n"), (">&-", ""), ("<&- >&- 2>&-", ""), ("", "row\n")])
def test_what_is_closed_is_not_taken_by_a_file(ends: str, out: str, tmp_path: Path):
    """With stderr closed, its lines go nowhere: neither to stdout nor into the first file that is opened."""
    body = "[open('file', 'w').write('content'), say('progress'), print('row')]"
    found = shell(
        f"from align.ground.terminal import guarded, say; guarded(lambda: {body})", ends, tmp_path, PYTHONPATH=str(ROOT)
    )
    assert (found.returncode, found.stdout, (tmp_path / "file").read_text()) == (0, out, "content")
    assert found.stderr == ("" if "2>&-" in ends else "progress\n")


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("print('row')", 1, "stdout cannot be written (No space left on device).\n"),
        ("print('row ' * 99999)", 1, "stdout cannot be written (No space left on device).\n"),
        (
            "print_result('n d', 'It is made: n d')",
            1,
            "stdout cannot be written (No space left on device). It is made: n d\n",
        ),
        ("say('row')", 0, "row\n"),
    ],
)
def test_a_full_disk_behind_stdout(body: str, code: int, said: str, tmp_path: Path):
    program = f"from align.ground.terminal import guarded, print_result, say; guarded(lambda: {body})"
    found = shell(program, "> /dev/full", tmp_path, PYTHONPATH=str(ROOT))
    assert (found.returncode, found.stderr) == (code, said)


def test_bad_input_is_told_by_the_first_of_several_processes(monkeypatch: pytest.MonkeyPatch):
    """The second is ended by torchrun, as here by hand, once the first has told it; what it meets alone it tells
    itself."""
    program = (
        "from align.ground.terminal import guarded; from align.ground.errors import InputError\ndef body():\n  "
        "  raise InputError('no row')\nguarded(body)"
    )
    found = {}
    for rank in ("0", "1"):
        process = subprocess.Popen(
            [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=os.environ | {"RANK": rank}
        )
        if rank == "1":
            time.sleep(3)
            assert process.poll() is None
            process.terminate()
        found[rank] = (process.communicate(timeout=60)[1], process.returncode)
    assert found == {"0": ("no row\n", 2), "1": ("", 2)}
    monkeypatch.setenv("RANK", "1")
    assert not leaving.first_says_it(0.01)


def test_articles():
    assert [terminal.an(word) for word in ("adapter", "reward", "int", "model")] == [
        "an adapter",
        "a reward",
        "an int",
        "a model",
    ]


def test_lines_break_between_words_in_a_terminal_alone(monkeypatch: pytest.MonkeyPatch):
    """Commands to copy have a line each, or lines that a shell joins; a word longer than the line stays whole. The
    control is a pipe."""
    said = f"a {'word ' * 20}{'x' * 90} end\nnext: align show {'y' * 90}, or align chat z"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert terminal.wrapped(said) == said
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2, raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    shown = terminal.wrapped(said).split("\n")
    assert [line.strip() for line in shown if len(line) > 80] == ["x" * 90, "y" * 90]
    assert shown[-1] == "   or align chat z" and " ".join(" ".join(shown[:-3]).split()) == said.split("\n")[0]
    assert shown[-3] == "next: align show \\"  # which a shell goes on from


def test_prose_on_stdout_breaks_between_words_in_a_terminal_alone():
    """Below its last column, or indented; what is printed outside, and in a pipe (the controls), has its line."""
    program = """
import fcntl, os, sys, termios
from struct import pack
from align.ground.terminal import guarded, prose
if os.isatty(1):
    fcntl.ioctl(1, termios.TIOCSWINSZ, pack('HHHH', 24, 80, 0, 0))
def body():
    with prose():
        print('cost     made in 0:01, ' + 'word ' * 20 + 'end')
        print('ppo: data: ' + 'word ' * 20 + 'end')
    print('code(' + 'x, ' * 40 + ')')
guarded(body)
"""
    master, slave = pty.openpty()
    subprocess.run([sys.executable, "-c", program], stdin=slave, stdout=slave, stderr=slave, timeout=60, check=True)
    os.close(slave)
    shown = os.read(master, 65536).decode().replace("\r\n", "\n").splitlines()
    os.close(master)
    piped = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    whole = piped.stdout.splitlines()
    assert len(whole) == 3 and min(map(len, whole)) > 80
    assert [line for line in shown if len(line) > 80] == whole[2:]
    assert [line[: len(line) - len(line.lstrip())] for line in shown] == ["", " " * 9, "", "  ", ""]
    assert " ".join(" ".join(shown).split()) == " ".join(" ".join(whole).split())
