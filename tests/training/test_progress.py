"""The time left of a run, against runs whose end is known, and the line of a stage that trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest

from align import blend, generate, merge, sft
from align.ground import progress
from align.ground.terminal import SCREEN
from align.training.telling.progress import FEWEST, Steps
from tests.conftest import Pipeline


def estimates(
    monkeypatch: pytest.MonkeyPatch, took: Callable[[int], float], total: int, period: int = 1, first: int = 0
) -> list[tuple[int, float, float | None]]:
    """(steps done, seconds that are left in truth, estimate) at the end and in the middle of every step."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    end = now[0] + sum(took(step) for step in range(first, total))
    steps, found = Steps("train", total, first, period), []
    for step in range(first, total):
        for half in (1, 2):
            now[0] += took(step) / 2
            if half == 2:
                steps.step(step + 1)
            found.append((int(steps.done), end - now[0], steps.left(now[0])))
    return found


def worst(found: list[tuple[int, float, float | None]]) -> float:
    """The largest error of an estimate, as a share of the whole run."""
    whole = found[0][1]
    return max(abs(left - truth) / whole for _, truth, left in found if left is not None)


def test_a_slow_first_step_promises_no_hours(monkeypatch: pytest.MonkeyPatch):
    """600 steps of 1 s, the first of which takes 30: it says nothing, and later estimates are right. Negative control:
    the mean since the start, at the first step, says five hours of ten minutes."""
    found = estimates(monkeypatch, lambda step: 30.0 if step == 0 else 1.0, 600)
    assert {left for done, _, left in found if done < FEWEST} == {None}
    assert worst(found) < 0.01 and found[-1][2] == 0.0
    assert 30.0 * 599 > 5 * 3600 - 60


def test_the_rollouts_of_a_run_are_its_measure(monkeypatch: pytest.MonkeyPatch):
    """10 rollouts of 16 steps of 1 s, the first of each after 44 s of sampling: the run takes ten minutes. A rate of
    the steps would say 1:34:00 after the second step; ours says nothing until a rollout is through, and is right then,
    also where a run goes on in the middle of one."""

    def took(step: int) -> float:
        return 45.0 if step % 16 == 0 else 1.0

    found = estimates(monkeypatch, took, 160, period=16)
    assert {left for done, _, left in found if done < 16} == {None}
    assert worst(found) < 0.01
    assert 6 * worst(found) * 600 < (45 + 1) / 2 * 158  # negative control
    assert worst(estimates(monkeypatch, took, 160, period=16, first=40)) < 0.1


def test_steps_that_grow_are_followed(monkeypatch: pytest.MonkeyPatch):
    """Of 1,000 steps the second half takes twice as long, as on a machine that others use too: the estimate is right
    again 50 steps later."""
    found = estimates(monkeypatch, lambda step: 1.0 if step < 500 else 2.0, 1000)
    assert worst([row for row in found if row[0] >= 550]) < 0.01 < worst(found)


def test_the_line(monkeypatch: pytest.MonkeyPatch):
    """By hand: 5 of 20 steps in 5 s; what matters most comes first."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    steps = Steps("sft", 20)
    steps.figures = {"loss": 2.0, "accuracy": 0.5}
    assert steps.line(0.0, None) == "sft ░░░░░░░░░░░░░░░░ 0/20 · 0:00 · loss 2.000 · accuracy 0.500"
    for step in range(1, 6):
        now[0] += 1.0
        steps.step(step)
    assert steps.line(5.0, None) == "sft ████░░░░░░░░░░░░ 5/20 · 0:15 left · loss 2.000 · accuracy 0.500 · 1.00 steps/s"
    assert steps.line(5.0, 40) == "sft 5/20 · 0:15 left · loss 2.000"


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of all work that began, in order."""
    told: list[str] = []
    begin = progress._Teller.begin

    def noted(self: progress._Teller, work: progress.Work) -> None:
        begin(self, work)
        told.append(work.title.removeprefix("mine: "))

    monkeypatch.setattr(progress._Teller, "begin", noted)
    return told


def test_what_is_being_done_is_told_by_name(pipeline: Pipeline, titles: list[str]):
    """Of what takes seconds at a real base's start and end, in its order; the run's own line is that of its steps
    alone."""
    data = pipeline.recipe.parent / "sft.jsonl"
    common: dict[str, object] = {"parent": "tiny/sft", "data": str(data), "max_steps": 1, "threads": 1}
    sft.run(sft.Config(**common, name="mine", precision="fp32"), pipeline.store)  # type: ignore[arg-type]
    wanted = ["loading libraries", "loading the tokenizer", "reading sft.jsonl", "rendering"]
    wanted += [f"loading artifact {pipeline.made['pretrain'].short}", "checking packed rows on a few tokens"]
    wanted += ["loading adapters", "computing log-probs", "writing what was made", "storing"]
    assert sorted(wanted, key=titles.index) == wanted


def test_blending_and_comparing_are_told_by_name(pipeline: Pipeline, titles: list[str]):
    """A real base takes most of a minute for each; without a name the line was the stage's own and a clock."""
    blend.run(blend.Config(adapters=["tiny/sft", "tiny/dpo"], name="mine"), pipeline.store)
    wanted = ["blending 2 adapters", "writing what was made", "storing"]
    assert sorted(wanted, key=titles.index) == wanted and "computing logits" not in titles
    merge.run(merge.Config(parent="mine", name="merged"), pipeline.store)
    assert titles.count("merged: computing logits") == 2  # before it is merged, and of what was written


def test_generating_is_told_by_name(pipeline: Pipeline, titles: list[str], monkeypatch: pytest.MonkeyPatch):
    """Parts are told only within a whole: `generate` said nothing for the minutes that a real base takes. Negative
    control: without one the part has no whole's name."""
    data = pipeline.recipe.parent / "prompts.jsonl"
    flags = ["--data", data, "--limit", "1", "--max_new_tokens", "2", "--threads", "1", "--store", pipeline.store.path]
    monkeypatch.setattr(SCREEN, "closed", False)  # which the command's end sets for good
    monkeypatch.setattr(sys, "argv", ["generate", "tiny/sft", *map(str, flags)])
    generate.main()
    wanted = ["generate", "generate: loading the tokenizer"]
    wanted += [f"generate: loading artifact {pipeline.made['pretrain'].short}", "generate: sampling"]
    assert sorted(wanted, key=titles.index) == wanted
    with progress.Task("alone"):
        assert titles[-1] == "alone"


def test_what_ended_early_has_no_time_left():
    """12 of 40 steps: the line says what they took. Negative control: before the end it says what is left."""
    steps = Steps("train", 40)
    for done in range(1, 13):
        steps.step(done)
    assert any(part.endswith("left") for part in steps.parts(30.0))
    steps.over = True
    assert steps.parts(30.0)[:2] == ["12/40", "0:30"]
