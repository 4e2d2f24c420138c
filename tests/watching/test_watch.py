"""`align watch` in a terminal of the kernel's (pty) and in a pipe, beside a process that works on a run. What is drawn
is compared with dots set by hand."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.ground.disk import locked
from align.ground.errors import Stopped
from align.ground.progress import cells
from align.report.sketch import sketch
from align.store import Store, live_runs
from align.store.live import News
from align.watching.plot import binned, drawn, number, plot
from align.watching.shown import of_live
from align.watching.terminal import picture, watch
from tests.conftest import ROOT, Pipeline, run_align
from tests.store.conftest import fill, put

WORKER = """
import sys
from align.store import Store
store, name = Store(sys.argv[1]), sys.argv[2]
def work(key, name):
    with store.run(key * 64) as run:
        run.news.begin(name, "ppo", {"beta": 0.1})
        run.news.train(100, 0)
        for step in range(1, 41):
            figures = {metric: step / 40 for metric in sys.argv[3:]}
            run.news.step(step, 60.0, {"loss": 1 - step / 40, **figures})
        print("works", flush=True)
        sys.stdin.readline()
work("a", name)
if "/" in name:
    work("b", name.split("/")[0] + "/second")
"""
METRICS = ("reward/mean", "kl", "accuracy", "entropy", "length", "a\x1b[31m/hostile-日本語-name", "x" * 300)


@contextmanager
def working(store: Path, name: str, *metrics: str) -> Iterator[Callable[[Any], object]]:
    """A process at work on a run of that name; what has it end the run, or go on to the next one."""
    command = [sys.executable, "-c", WORKER, str(store), name, *metrics]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stdin and process.stdout and process.stdout.readline() == "works\n"
    stdin = process.stdin
    try:
        yield lambda *_: (stdin.write("\n"), stdin.flush())
    finally:
        process.kill()
        process.communicate()


def watched(
    store: Path, columns: int, *words: str, then: Sequence[tuple[bytes, Callable[[Any], object]]]
) -> tuple[list[str], float, int]:
    """The pictures that `align watch` draws in a terminal, the seconds from the last of `then` to its end, and its exit
    code. `then`: what is done to the process when something is drawn, one after the other."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    command = [sys.executable, "-m", "align", "watch", *words, "--store", str(store)]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
    os.close(slave)
    written, waiting, begun = b"", list(then), 0.0
    while True:
        try:
            written += os.read(master, 65536)
        except OSError:
            break
        if waiting and waiting[0][0] in written:
            begun = time.monotonic()
            waiting.pop(0)[1](process)
    os.close(master)
    code = process.wait(60)
    frames = re.split(r"(?:\x1b\[\d+A)?\r\x1b\[[JK]", written.decode())
    return [frame.replace("\r\n", "\n") for frame in frames if frame], time.monotonic() - begun, code


def interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)


@pytest.mark.parametrize("columns", [80, *(pytest.param(n, marks=pytest.mark.slow) for n in (100, 200))])
def test_it_draws_a_run_until_it_ends(columns: int, tmp_path: Path):
    """Curves of what the run tells, no line as wide as the terminal, no command to it but those that put a picture in
    the place of the last; and the end, said."""
    with working(tmp_path, "alone", *METRICS) as end:
        frames, _, code = watched(tmp_path, columns, then=[(b"step 40", end)])
    assert code == 75 and len(frames) >= 2
    assert "\x1b" not in "".join(frames)
    assert max(cells(line) for frame in frames for line in frame.splitlines()) < columns
    assert max(len(frame.splitlines()) for frame in frames) < 30
    first = frames[0].splitlines()
    assert first[0].startswith("alone ██████░░░░░░░░░░ step 40/100 · 1:00 left · 0:0")
    for metric in ("loss", "reward/mean", "kl", "accuracy"):
        assert any(metric in line for line in first)
    assert "stopped at step 40 of 100; the same command goes on" in frames[-2]
    assert frames[-1] == "alone ended before it was done.\n"


def test_curves_that_do_not_fit_are_counted(tmp_path: Path):
    """Negative control: a terminal in which all do."""
    with working(tmp_path, "alone", *METRICS):
        (run,) = live_runs(Store(tmp_path))
        for lines, shown in ((14, 4), (60, 1 + len(METRICS))):
            found = picture(of_live(run), 80, lines)
            said = f"{1 + len(METRICS) - shown} curves more than fit here; align board shows all"
            assert len(found) < lines and (said in found) == (shown < 1 + len(METRICS))


def test_it_follows_a_recipe_to_its_next_stage(tmp_path: Path):
    with working(tmp_path, "recipe/first") as end:
        frames, _, code = watched(tmp_path, 80, "recipe", then=[(b"first", end), (b"second", interrupt)])
    said = [frame.split()[0] for frame in frames]
    assert code == 75 and said[0] == "recipe/first" and "recipe/second" in said


def test_ctrl_c_stops_looking(tmp_path: Path):
    """At once, and not with 0, so that what stands behind && does not begin; the run goes on."""
    with working(tmp_path, "alone"):
        frames, seconds, code = watched(tmp_path, 80, then=[(b"step 40", interrupt)])
        assert code == 75 and frames[-1] == "no longer looking on; what is at work goes on.\n"
        assert seconds < 5
        piped = [sys.executable, "-m", "align", "watch", "--store", str(tmp_path)]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(piped, stdout=subprocess.PIPE, text=True, env=env)
        assert process.stdout
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10) == ("", None) and process.returncode == 75
    assert re.fullmatch(r"alone ██████░░░░░░░░░░ step 40/100 · 1:00 left · 0:0\d so far · loss 0\n", line)


def stopped(store: Store, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(Stopped, match=f"^{name} ended before it was done.$"):
        watch(store, name)
    return capsys.readouterr().out


def test_runs_that_were_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """How far it came and what to do, beside whose work goes on; one that took no step says so."""
    store = Store(tmp_path)
    for name in ("far", "early", "judged", "other", "recipe/third"):
        folder = tmp_path / "runs" / name.replace("/", "-")
        folder.mkdir(parents=True)
        news = News(folder)
        news.begin(name, "ppo", {})
        if name == "judged":
            news.failed("judge.py:2:\n  division by zero")
        elif name != "early":
            news.train(100, 0)
            news.step(40, 60.0, {"loss": 0.5})
    with locked(tmp_path / "runs/other/lock"):
        far, early, judged = (stopped(store, name, capsys) for name in ("far", "early", "judged"))
    assert "judged ended before it was done: judge.py:2: division by zero" in judged
    assert "far ██████░░░░░░░░░░ stopped at step 40 of 100; the same command goes on" in far and "other" in far
    assert "early ended before it was done: its own window says why" in early and "step 0" not in early
    with pytest.raises(Stopped, match=r"^recipe/third ended before it was done\.$"):
        watch(store, "recipe")  # which names what came last of it
    capsys.readouterr()
    assert "other" not in stopped(store, "far", capsys)  # negative control: it works no longer


def test_where_nothing_is_at_work(trained: Pipeline, tmp_path: Path):
    """One sentence; a run that is done is drawn, with its name, and of a recipe the last one; what can be no name is
    refused."""
    said = run_align("watch", "--store", tmp_path).stdout
    assert (
        said == f"Nothing is at work in {tmp_path}. align watch NAME draws a run that is done; align ls names them.\n"
    )
    done = run_align("watch", "tiny/ppo", "--store", trained.store.path).stdout
    assert done.startswith("tiny/ppo ████████████████ done, 2 steps\n") and "reward/mean" in done
    assert "\x1b" not in done and max(map(cells, done.splitlines())) < 80
    assert run_align("watch", "tiny", "--store", trained.store.path).stdout == done
    store = Store(tmp_path / "reported")
    for name, files in (("r/sft", {"history.jsonl": b'{"step": 2, "loss": 0.25}\n'}), ("r/report", {"t": b"t"})):
        store.tag(name, put(store, fill(tmp_path / name, files)))
    newest = run_align("watch", "r", "--store", store.path).stdout
    assert newest.startswith("r/report is done, and has no curves: nothing was trained. align show r/report\nr/sft ")
    assert "done, 2 steps" in newest and "loss" in newest
    alone = run_align("watch", "r/report", "--store", store.path).stdout
    assert newest.startswith(alone) and len(alone.splitlines()) == 1
    for wrong in ("../tiny", "0123456789ab"):
        assert "is no name and no digest" in run_align("watch", wrong, "--store", trained.store.path, code=2).stderr


def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path):
    """With a word at once, near names in it and how to end it; then it is drawn, and its end told with its figures."""
    store = Store(tmp_path)
    command = [sys.executable, "-m", "align", "watch", "later", "--store", str(tmp_path)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stdout and process.stderr
    assert process.stderr.readline().startswith("'later' is not known: there is no store at")
    assert process.stderr.readline() == "This waits until a run of that name begins; Ctrl-C ends it.\n"
    with store.run("a" * 64) as run:
        run.news.begin("later", "sft", {})
        run.news.train(2, 0)
        run.news.step(2, 0.0, {"loss": 0.5})
        assert process.stdout.readline().startswith("later ████████████████ step 2/2")
        folder = tmp_path / "made"
        folder.mkdir()
        (folder / "history.jsonl").write_text('{"step": 2, "loss": 0.25}\n')
        artifact = put(store, folder)
        store.tag("later", artifact)
        run.finish(artifact, {"seconds": 1.0})
    out, _ = process.communicate(timeout=30)
    assert out == "later ████████████████ done, 2 steps · loss 0.25\n" and process.returncode == 0


def test_a_wait_offers_near_names_and_says_that_it_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Of runs at work and of recipes; in a pipe a line every ten seconds, by hand after 10, 20 and 30. The controls: a
    name near to none, and a terminal, whose one line stays."""
    store, seconds = Store(tmp_path), [0.0]

    def passes(_: float) -> None:
        seconds[0] += 1.0
        if seconds[0] > 35:
            raise KeyboardInterrupt

    def waits(ref: str) -> tuple[str, list[str]]:
        seconds[0] = 0.0
        with pytest.raises(Stopped):
            watch(store, ref)
        out, err = capsys.readouterr()
        return out, err.splitlines()

    with store.run("a" * 64) as run:
        run.news.begin("helpful/dpo", "dpo", {})
        monkeypatch.setattr("align.watching.terminal.time", SimpleNamespace(monotonic=lambda: seconds[0], sleep=passes))
        out, err = waits("helpfull")
        assert out.splitlines() == [f"helpfull has not begun · 0:{tens} so far" for tens in (10, 20, 30)]
        assert err == [
            f"'helpfull' is no run and no recipe in {tmp_path}; did you mean helpful or helpful/dpo?",
            "This waits until a run of that name begins; Ctrl-C ends it.",
        ]
        assert waits("helpful/dop")[1][0].endswith("did you mean helpful/dpo or helpful?")
        assert waits("zzz")[1][0] == f"'zzz' is no name and no digest in {tmp_path}; `align ls` lists what is there."
        monkeypatch.setattr("align.watching.terminal.Canvas", lambda: SimpleNamespace(redraws=True))
        assert waits("helpfull") == ("", err)


def test_a_wait_ends_by_ctrl_c(tmp_path: Path):
    _, seconds, code = watched(tmp_path, 80, "never", then=[(b"Ctrl-C ends it", interrupt)])
    assert code == 75 and seconds < 5


def test_a_run_in_a_finished_store_is_read_alone(trained: Pipeline, capsys: pytest.CaptureFixture[str]):
    """Looking writes nothing."""

    def listing() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in trained.store.path.rglob("*"))

    before = listing()
    watch(Store(trained.store.path), None)
    watch(Store(trained.store.path), "tiny/dpo")
    assert listing() == before and "rewards/margins" in capsys.readouterr().out


def test_ends_of_an_axis_are_told_apart():
    """0.690001 and 0.690008 have the same four digits. Negative control: 0.1 and 0.9 need no more than they have."""
    for low, high, said in ((0.690001, 0.690008, ["0.690008", "0.690001"]), (0.1, 0.9, ["0.9", "0.1"])):
        _, *rows = plot("loss", [(0, low), (9, high)], 9, 40, 4)
        assert [rows[0].split()[0], rows[-1].split()[0]] == said and {len(row) for row in rows} == {40}
        lines = sketch("loss", {"a": [(0, low), (9, high)]}, 40)
        assert [line.split()[0] for line in lines if "┤" in line and line.split()[0] != "┤"] == said


def test_dots_by_hand():
    """Four columns and one line: a straight fall is the diagonal of each of two characters, joined upright."""
    assert drawn([3.0, 2.0, 1.0, 0.0], 0.0, 3.0, 1) == ["⠑⢄"]
    assert drawn([1.0, 1.0], 1.0, 1.0, 1) == ["⠤"]  # what does not change stands in the middle
    assert drawn([0.0, None, None, 3.0], 0.0, 3.0, 1) == ["⡠⠊"]  # over a gap
    assert binned([(0, 1.0), (1, 3.0), (10, 5.0)], 10, 3) == [2.0, None, 5.0]
    assert plot("loss", [(1, 0.5), (2, 0.25)], 2, 20, 2)[0] == "loss            0.25"
    assert {len(line) for line in plot("a name that is too long", [(1, 0.5), (2, 0.25)], 2, 20, 2)} == {20}
    assert [number(value) for value in (0.123456, -1234.5, 1.23456e-7, 12345678.0)] == [
        *("0.1235", "-1234", "1.2e-07", "1.2e+07")
    ]
