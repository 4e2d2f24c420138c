"""What the tests of stages share: a stage of the tiny recipe run alone, with other settings."""

from __future__ import annotations

import importlib
import json
from typing import Any

from align.pipeline import load
from align.store import Artifact, Store
from tests.conftest import Pipeline

GROUPS: dict[str, dict[str, Any]] = {
    "grpo": {"group_size": 4, "rollout_epochs": 2},
    "rloo": {"group_size": 4, "rollout_epochs": 2},
    "reinforce_pp": {"group_size": 2, "rollout_epochs": 2},
    "online_dpo": {"group_size": 2, "rollout_epochs": 2, "beta": 0.2},
}
"""Stages that the tiny recipe does not have; beside these settings they get PPO's."""


def settings(pipeline: Pipeline, stage: str, **changes: Any) -> Any:
    """A stage's settings as the recipe has them, its inputs bound to what the recipe made; `None` leaves a setting at
    its default."""
    recipe = load(pipeline.recipe)
    bound = dict(
        recipe.stages["ppo" if stage in GROUPS else stage].bind({name: f"tiny/{name}" for name in recipe.stages})
    )
    if stage in GROUPS:
        known = _module(stage).Config.model_fields.keys() - {"kl_coef"}
        bound = {k: v for k, v in bound.items() if k in known} | GROUPS[stage] | {"name": f"tiny/{stage}"}
    made = _module(stage).Config(**{key: value for key, value in {**bound, **changes}.items() if value is not None})
    # the rest is as good as what a recipe says for all its stages: defaults
    made.model_fields_set.intersection_update(changes)
    return made


def run(pipeline: Pipeline, stage: str, **changes: Any) -> Artifact:
    """Run one stage in the pipeline's store."""
    return _module(stage).run(settings(pipeline, stage, **changes), pipeline.store)


def history(artifact: Artifact, store: Store) -> list[dict[str, float]]:
    return [json.loads(line) for line in store.read(artifact, "history.jsonl").splitlines()]


def committed(store: Store) -> dict[str, bytes]:
    """Everything that the store promises to keep; runs/ and cache/ may come and go."""
    rooms = ("objects", "artifacts", "refs", "asked")
    return {
        str(path.relative_to(store.path)): path.read_bytes()
        for room in rooms
        for path in (store.path / room).rglob("*")
        if path.is_file()
    }


def forget(store: Store, artifact: Artifact) -> None:
    """Make the store forget that this was asked, so that it is worked out anew."""
    (asked,) = (p for p in (store.path / "asked").rglob("*") if p.is_file() and artifact.digest in p.read_text())
    asked.unlink()


def _module(stage: str) -> Any:
    return importlib.import_module(f"align.{stage}")
