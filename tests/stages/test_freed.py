"""A stage leaves no model in memory: those of a recipe share one process, and the next one needs the room."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from align.stage.workbench import Workbench
from tests.conftest import Pipeline
from tests.stages.helpers import run


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo", "grpo"])
def test_no_model_outlives_its_stage(stage: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: one that somebody holds does."""
    held: list[Any] = []
    found: list[weakref.ref[Any]] = []
    load = Workbench.load_base

    def watched(bench: Workbench, *args: Any) -> Any:
        roles = load(bench, *args)
        found.append(weakref.ref(roles.base))
        held.extend([roles.base] if bench.config.seed == 5 else [])
        return roles

    monkeypatch.setattr(Workbench, "load_base", watched)
    run(pipeline, stage, seed=4)
    gc.collect()
    assert found and all(base() is None for base in found)
    if stage == "sft":
        run(pipeline, stage, seed=5)
        gc.collect()
        assert found[-1]() is held[-1]
