"""The news of a run: whole lines whatever happens to who writes them, and nothing that a result depends on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align import sft
from align.ground.disk import is_locked, locked
from align.ground.errors import AlignError, InputError, Stopped
from align.stage.execute import work
from align.store import LiveRun, News, Store, live_runs
from align.store.live import FILE, is_figure, read_live
from tests.conftest import ROOT, Pipeline

INPUTS = {"version": 2, "base": None, "parents": {"parent": "a" * 64}, "data": {"data": "b" * 64}}


def told(folder: Path) -> News:
    """A run of ten steps, of which three were taken."""
    news = News(folder)
    news.begin("recipe/sft", "sft", {"beta": 0.1}, INPUTS)
    news.train(10, 0)
    for step in (1, 2, 3):
        news.step(step, 10.0 - step, {"loss": 1.0 / step})
    return news


def test_what_is_told_is_read(tmp_path: Path):
    news = told(tmp_path)
    news.step(3, 7.0, {"learning_rate": 0.5, "nothing": float("nan"), "much": float("inf")})
    news.answers("at the start", [("who?", "I")])
    found = read_live(tmp_path)
    assert found and (found.name, found.stage, found.settings, found.steps) == ("recipe/sft", "sft", {"beta": 0.1}, 10)
    assert found.rows == [(1, {"loss": 1.0}), (2, {"loss": 0.5}), (3, {"loss": 1.0 / 3, "learning_rate": 0.5})]
    assert (found.left, found.answers, found.pid) == (7.0, {"at the start": [("who?", "I")]}, os.getpid())
    news.step(4, 6.0, {})
    further = read_live(tmp_path)
    assert further and (further.step, further.rows, further.inputs) == (4, found.rows, INPUTS)
    assert abs(found.began - time.time()) < 60 and not found.works
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_run_that_goes_on_forgets_what_is_done_anew(tmp_path: Path):
    """Killed after step 3 with a checkpoint of step 1: the new process takes step 2 again."""
    news = told(tmp_path)
    news.begin("recipe/sft", "sft", {"beta": 0.1})
    news.train(10, 1)
    news.step(2, None, {"loss": 0.4})
    found = read_live(tmp_path)
    assert found and found.rows == [(1, {"loss": 1.0}), (2, {"loss": 0.4})] and found.left is None
    news.train(10, 1)
    assert (found := read_live(tmp_path)) and found.step == 1


@pytest.mark.parametrize(
    ("error", "why"),
    [(AlignError("judge.py:2: division by zero"), "judge.py:2: division by zero"), (ValueError(), "ValueError")],
)
def test_why_it_ended_is_told(error: Exception, why: str, tmp_path: Path):
    """And forgotten when it begins anew. Negative controls: one that is refused leaves nothing, one that is stopped no
    reason."""
    store = Store(tmp_path)

    def ended(error: Exception) -> LiveRun | None:
        def fails(bench: object) -> None:
            raise error

        bench: Any = SimpleNamespace(question=SimpleNamespace(stage=SimpleNamespace(work=fails)))
        with store.run("b" * 64) as run:
            run.news.begin("pairs", "pairs", {})
            with pytest.raises(type(error)):
                work(bench, run)
            return read_live(run.path)

    found = ended(error)
    assert found and found.why == why
    News(found.path).begin("pairs", "pairs", {})
    again = read_live(found.path)
    assert again and again.why == ""
    assert ended(InputError("no such column")) is None
    told_stopped = ended(Stopped("stopped"))
    assert told_stopped and told_stopped.why == ""


@pytest.mark.parametrize("keep", range(1, 20, 6))
def test_a_line_that_was_cut_short(keep: int, tmp_path: Path):
    """The reader passes over it, and who writes next removes it; lines of others are passed over too."""
    told(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole + b'{"step": 4, "figures": {}}'[:keep])
    assert read_live(tmp_path) == read_live(tmp_path) and len(read_live(tmp_path).rows) == 3  # type: ignore[union-attr]
    news = News(tmp_path)
    news.begin("recipe/sft", "sft", {})
    assert (tmp_path / FILE).read_bytes().startswith(whole)
    assert [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()][-1]["run"] == "recipe/sft"


HOSTILE = [
    b"\xff\xfe\n",
    b"[" * 100_000 + b"\n",
    b'{"step": "1", "figures": {}}\n',
    b'{"step": 1, "figures": {"loss": 1' + b"0" * 400 + b', "b": true, "c": "x", "d": NaN}}\n',
    b'{"after": "x", "answers": [1, ["a"], ["a", 2]]}\n',
    b'{"run": 1, "stage": [], "began": "x", "settings": 3}\n',
    b'{"run": "x", "stage": "y", "began": 1, "settings": {}, "pid": 99999999999999, "inputs": [1]}\n',
    b'{"run": "x", "stage": "y", "began": 1, "settings": {}, "inputs": {"base": {"model": 1}, "parents": {"a": 1}, '
    b'"data": "x", "version": "1", "more": 1}}\n',
]


def test_nothing_in_the_file_is_trusted(tmp_path: Path):
    told(tmp_path)
    with open(tmp_path / FILE, "ab") as file:
        file.writelines(HOSTILE)
    found = read_live(tmp_path)
    assert found and not found.goes_on and found.rows[-1] == (3, {"loss": 1 / 3}) and found.answers == {"x": []}
    assert found.inputs == {}
    assert [is_figure(value) for value in (1, 0.5, True, "1", None, float("nan"), 10**400)] == [True, True] + 5 * [
        False
    ]


HUGE = "1" + "0" * 400


@pytest.mark.parametrize("began", ["1e999", "NaN", "-1", "1e12", "true", HUGE])
def test_a_beginning_at_no_time_is_passed_over(began: str, tmp_path: Path):
    """So is a run of which nothing else is told. Negative control: one of a moment is read."""
    begins = '{"run": "x", "stage": "y", "began": %s, "settings": {}}\n{"steps": 2, "from": 0}\n'
    (tmp_path / FILE).write_text(begins % began)
    assert read_live(tmp_path) is None
    (tmp_path / FILE).write_text(begins % 1.5)
    assert (found := read_live(tmp_path)) and (found.began, found.steps) == (1.5, 2)


@pytest.mark.parametrize("step", [HUGE, "-5", "true", "1e999", str(2**53)])
def test_a_step_that_is_none_is_passed_over(step: str, tmp_path: Path):
    """Negative control: the line of a step, and of a time left, that can be shown."""
    told(tmp_path)
    with open(tmp_path / FILE, "a") as file:
        file.write(f'{{"step": {step}, "figures": {{"loss": 9}}}}\n{{"steps": {step}, "from": 0}}\n')
        file.write(f'{{"steps": 10, "from": {step}}}\n')
    found = read_live(tmp_path)
    assert found and (found.step, found.steps, len(found.rows), found.left) == (3, 10, 3, 7.0)
    with open(tmp_path / FILE, "a") as file:
        file.write(f'{{"step": 4, "figures": {{"loss": 9}}, "left": {HUGE}}}\n')
    found = read_live(tmp_path)
    assert found and (found.step, found.rows[-1], found.left) == (4, (4, {"loss": 9.0}), None)


WRITER = """
import sys
from pathlib import Path
from align.store import News, Store
store = Store(sys.argv[1])
with store.run("a" * 64) as run:
    run.news.begin("killed/sft", "sft", {})
    run.news.train(10**6, 0)
    for step in range(1, 10**6):
        run.news.step(step, 1.0, {"loss": 1.0 / step, "x" * 200: 0.5})
"""


def test_a_writer_is_killed(tmp_path: Path):
    """With SIGKILL, amid its lines: every line is whole, and the run is no longer at work."""
    store = Store(tmp_path / "store")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(store.path)], env=env)
    try:
        while not (found := live_runs(store, at_work=True)) or len(found[0].rows) < 200:
            assert process.poll() is None
            time.sleep(0.02)
        assert found[0].works and found[0].goes_on and found[0].name == "killed/sft"
    finally:
        process.kill()
        process.wait()
    (found,) = live_runs(store)
    steps = [json.loads(line) for line in (found.path / FILE).read_bytes().split(b"\n")[2:-1]]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1)) and len(found.rows) == len(steps)
    assert not found.works and not found.goes_on and live_runs(store, at_work=True) == []
    assert [path.name for path in store.collect(delete=True).others] == ["a" * 64]  # it cannot go on: garbage
    assert not found.path.exists()


def test_asking_who_works_makes_nobody_wait(tmp_path: Path):
    """Whoever asks, all the time, while a lock is taken again and again by somebody who says when he has to wait."""
    program = f"""
from pathlib import Path
from align.ground.disk import is_locked
while True:
    is_locked(Path({str(tmp_path / "lock")!r}))
"""
    asking = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)})
    waited: list[str] = []
    end = time.monotonic() + 1.5
    try:
        while time.monotonic() < end:
            with locked(tmp_path / "lock", waited.append):
                pass
            assert not is_locked(tmp_path / "lock")
    finally:
        asking.kill()
        asking.wait()
    assert len(waited) <= 2  # one who asks at the moment of leaving, when the file is not empty yet


def test_a_stage_tells_the_rows_of_its_history(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    """What is seen while it works is what is seen when it is done: the same steps, names and means, held-out figures
    among them, and what it is made from. The file goes when the run is done; with it there, and without, the artifact
    is the same."""
    settings = {"precision": "fp32", "threads": 1, "max_steps": 4, "batch_size": 2, "logging_steps": 3, "eval_steps": 2}
    config = sft.Config(
        base=pipeline.made["pretrain"].digest, data=pipeline.recipe.parent / "sft.jsonl", name="told", **settings
    )
    monkeypatch.setattr("align.training.telling.reporter.OFTEN", 0.0)
    monkeypatch.setattr("align.store.run.FILE", "nothing")
    made = sft.run(config, pipeline.store)
    (found,) = [run for run in live_runs(pipeline.store) if run.name == "told"]
    history = [json.loads(line) for line in pipeline.store.read(made, "history.jsonl").splitlines()]
    assert [{"step": step, **figures} for step, figures in found.rows] == history
    assert [row["step"] for row in history] == [0, 1, 2, 3, 4]
    assert "eval/loss" in history[2] and {"loss", "learning_rate", "grad_norm"} <= history[3].keys()
    assert (found.name, found.stage, found.step, found.steps, found.works) == ("told", "sft", 4, 4, False)
    assert found.settings["batch_size"] == 2
    told = {"version": made.version, "parents": made.parents, "data": made.data, "base": made.base}
    assert found.inputs == told
    monkeypatch.undo()
    for path in (pipeline.store.path / "asked").iterdir():
        path.unlink()
    monkeypatch.setattr(News, "_add", lambda self, line: None)
    assert sft.run(config, pipeline.store).digest == made.digest and live_runs(pipeline.store) == []
    assert pipeline.store.verify() == []


def test_what_it_is_at_is_read_until_it_is_begun_anew(tmp_path: Path):
    """Of a run that has not begun, or is done, no file is made."""
    news = News(tmp_path)
    news.work("sampling 1/4 answers")
    assert not (tmp_path / FILE).exists()
    news.begin("recipe/pairs", "pairs", {})
    news.work("sampling 2/4 answers")
    news.work("sampling 3/4 answers")
    assert (found := read_live(tmp_path)) and (found.at, found.steps) == ("sampling 3/4 answers", 0)
    news.begin("recipe/pairs", "pairs", {})
    assert (found := read_live(tmp_path)) and found.at == ""
    (tmp_path / FILE).unlink()
    news.work("storing")
    assert not (tmp_path / FILE).exists() and not news.lost
