"""When held-out records are looked at, which look was the best, and when a run ends early. The truth is transformers'
EarlyStoppingCallback with its Trainer's own choice of the best, driven by the same series; or a hand."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

from align import sft
from align.guard.looks import Schedule, best, waited
from align.guard.supervised import Guard
from tests.models.models import settings


def theirs(losses: list[float], patience: int, min_delta: float) -> tuple[int, int | None]:
    """(looks until the run ends or all were taken, the best look) as transformers has it."""
    args = SimpleNamespace(
        metric_for_best_model="loss", greater_is_better=False, save_strategy=SaveStrategy.STEPS, eval_strategy="steps"
    )
    trainer: Any = SimpleNamespace(args=args, state=TrainerState())
    stopping, control = EarlyStoppingCallback(patience, min_delta), TrainerControl()
    for i, loss in enumerate(losses, start=1):
        trainer.state.global_step = i
        metrics = {"eval_loss": loss}
        stopping.on_evaluate(args, trainer.state, control, metrics)
        Trainer._determine_best_metric(trainer, metrics, None)
        if control.should_training_stop:
            return i, trainer.state.best_global_step
    return len(losses), trainer.state.best_global_step


def ours(losses: list[float], patience: int, min_delta: float, folder: Path) -> tuple[int, int | None]:
    """The same by a guard that looks after every step."""
    config = settings(sft.Config, eval_steps=1, keep="best", patience=patience, min_delta=min_delta, batch_size=1)
    found, roles = iter([9.0, *losses]), nn.Linear(1, 1)
    guard = Guard(config, "run", roles, ["a record"], lambda some: {"loss": next(found)})  # type: ignore[arg-type, list-item]
    guard.begin(len(losses), 10)
    guard.look(0)
    for i in range(1, len(losses) + 1):
        guard.step({"loss": 1.0})
        guard.look(i)
        if guard.ended:
            break
    guard.end(folder)
    return guard.run.done, guard.best


SERIES = [
    [3.0, 2.0, 2.0, 2.0, 2.0, 1.0],
    [3.0, 2.95, 2.90, 2.85, 2.80],  # many small gains, each below the threshold
    [1.0, math.nan, 0.5, math.nan, math.nan, math.nan, 0.1],
    [math.nan, 2.0, 3.0, 1.0],
    [1.0, 2.0, 3.0],
    [2.0],
]


def test_patience_and_best_are_those_of_transformers(tmp_path: Path) -> None:
    draw = random.Random(0)
    drawn = [[round(draw.uniform(1, 3), 1) for _ in range(draw.randint(2, 12))] for _ in range(60)]
    ended = []
    for losses in [*SERIES, *drawn]:
        for patience in (1, 2, 3):
            for min_delta in (0.0, 0.1, 0.5):
                truth = theirs(losses, patience, min_delta)
                assert ours(losses, patience, min_delta, tmp_path) == truth, (losses, patience, min_delta)
                ended.append(truth[0] < len(losses))
    assert 0.2 < sum(ended) / len(ended) < 0.9, "both kinds are among them"


def test_what_is_worse_than_the_start_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 9.0 before the first step, with both figures. Negative control: 8.5 is no worse."""
    ours([12.0, 10.0, 11.0], 1, 0.0, tmp_path)
    said = capsys.readouterr().err
    assert (
        "the weights kept, of step 2, are worse than the start: held-out loss 10, and 9 before the first step" in said
    )
    assert "ended after" not in said and "was no lower" not in said
    ours([10.0, 11.0, 11.0], 1, 0.0, tmp_path)
    assert "the held-out loss was no lower in 1 look\n" in capsys.readouterr().err
    ours([12.0, 8.5, 11.0], 1, 0.0, tmp_path)
    assert "worse than the start" not in capsys.readouterr().err
    assert str(Schedule(3, 1)) == "at the start, every step and at the end" and "every 2 steps" in str(Schedule(3, 2))


def test_what_counts_as_waiting() -> None:
    """Of 3.0, 2.95, 2.9, 2.2 by more than 0.5: the last is 0.7 below the best before it, the others are no gain, though
    each is a new best."""
    assert [waited([3.0, 2.95, 2.9, 2.2][:n], 0.5) for n in range(5)] == [0, 0, 1, 2, 0]
    rows = [{"step": s, "loss": loss} for s, loss in ((0.0, 0.1), (5.0, 2.0), (10.0, 1.0), (15.0, 1.0), (20.0, 3.0))]
    found = best(rows)
    assert found is rows[2], "the first of equals; before the first step nothing was trained"
    assert best(rows[:1]) is None


@pytest.mark.parametrize(
    ("steps", "every", "due"),
    [
        (10, None, [0, 5, 10]),
        (1, None, [0, 1]),
        (10, 3, [0, 3, 6, 9, 10]),
        (7, 0.5 * 5, [0, 3, 5, 7]),  # half an epoch of 5 steps: 2.5, 5, 7.5
        (3, 20, [0, 3]),
        (700, 0.7 * 100, [0, 70, 140, 210, 280, 350, 420, 490, 560, 630, 700]),
        (3, 0.5, [0, 1, 2, 3]),
    ],
)
def test_when_a_look_is_due(steps: int, every: float | None, due: list[int]) -> None:
    schedule = Schedule(steps, every)
    assert [step for step in range(steps + 1) if schedule.due(step)] == due
    assert schedule.count() == len(due) - 1
