"""Stages whose reference follows the policy: where it is the policy at every step, nothing lies between the two."""

from __future__ import annotations

import json
import math
import signal
from typing import Any

import pytest

from align import dpo
from align.ground.errors import InputError, Stopped
from align.stage.question import prepare
from tests.conftest import Pipeline
from tests.stages.helpers import forget, history, run, settings
from tests.stages.test_resume import interrupt

EVERY: dict[str, Any] = {"max_steps": 3, "logging_steps": 1, "ref_model_sync_steps": 1}


def test_dpo_against_itself(pipeline: Pipeline) -> None:
    """Every step begins at its reference: its loss is ln 2. Against the parent it is not."""
    made = run(pipeline, "dpo", **EVERY)
    losses = [row["loss"] for row in history(made, pipeline.store)]
    assert losses == pytest.approx([math.log(2)] * 3, abs=1e-6)
    rows = [json.loads(line) for line in pipeline.store.read(made, "reference.jsonl").splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and made.metrics["reference/moves"] == 2
    pinned = run(pipeline, "dpo", **EVERY | {"ref_model_sync_steps": None})
    assert abs(history(pinned, pipeline.store)[-1]["loss"] - math.log(2)) > 1e-3  # negative control
    assert "reference.jsonl" not in pinned.files


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_rollouts_against_itself(stage: str, pipeline: Pipeline) -> None:
    """KL from the reference is 0 in every rollout."""
    once = {"rollout_epochs": 1} if stage == "grpo" else {"ppo_epochs": 1}
    changes = EVERY | {"rollout_size": 8, "batch_size": 8, **once}
    made = run(pipeline, stage, **changes)
    assert [row["kl"] for row in history(made, pipeline.store)] == pytest.approx([0.0] * 3, abs=1e-4)
    pinned = run(pipeline, stage, **changes | {"ref_model_sync_steps": None})
    assert abs(history(pinned, pipeline.store)[-1]["kl"]) > 1e-3  # negative control


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "grpo"])
def test_stopped_between_two_moves(stage: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference of a resumed run is that of one that was not stopped."""
    changes: dict[str, Any] = {"max_steps": 4, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.6}
    changes |= {"resample": 2, "importance": "token_truncate"} if stage == "grpo" else {}
    whole = run(pipeline, stage, **changes)
    forget(pipeline.store, whole)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupt(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        run(pipeline, stage, **changes)
    assert run(pipeline, stage, **changes).digest == whole.digest
    assert whole.metrics["reference/moves"] == 1


def test_a_method_that_adds_no_sum_is_refused(pipeline: Pipeline) -> None:
    """A fresh DoRA on the base may follow whole, but not in part."""
    fresh: dict[str, Any] = {
        "parent": "tiny/pretrain",
        "adapter": {"method": "dora", "rank": 4},
    }
    config = settings(pipeline, "dpo", **fresh, ref_model_sync_steps=1)
    prepare(dpo.STAGE, config, pipeline.store)
    part = settings(pipeline, "dpo", **fresh, ref_model_sync_steps=1, ref_model_mixup_alpha=0.5)
    with pytest.raises(
        InputError, match=r"^ref_model_mixup_alpha is below 1, .* one of dora adds no sum\. Set it to 1"
    ):
        prepare(dpo.STAGE, part, pipeline.store)
