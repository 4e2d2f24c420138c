"""`blend` as a stage of a recipe: rehearsed with what follows it, planned, run, and gone on from."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load

from align import cli
from align import pipeline as pipelines
from align.folders.adapter import SHAPE, WEIGHTS
from align.ground.errors import InputError
from align.store import Artifact
from tests.conftest import Pipeline

STAGES = """
  both: {kind: blend, adapters: [sft, dpo], weights: {sft: 0.25, dpo: 0.75}}
  small: {kind: blend, adapters: [both], method: svd, rank: 2}
  on: {kind: dpo, parent: small, data: pairs.jsonl}
"""


def added(pipeline: Pipeline, artifact: Artifact, layer: str) -> torch.Tensor:
    """alpha / r x B A of one layer, over all adapters of an artifact."""
    found = torch.zeros(())
    for i in range(sum(path.endswith(SHAPE) for path in artifact.files)):
        tensors = load(pipeline.store.read(artifact, f"adapters/{i}/{WEIGHTS}"))
        settings = json.loads(pipeline.store.read(artifact, f"adapters/{i}/{SHAPE}"))
        name = f"base_model.model.model.layers.0.{layer}"
        scale = settings["lora_alpha"] / settings["r"]
        found = found + scale * tensors[f"{name}.lora_B.weight"].double() @ tensors[f"{name}.lora_A.weight"].double()
    return found


def test_blend_is_a_stage(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = pipeline.recipe.with_name("blended.yaml")
    recipe.write_text(pipeline.recipe.read_text() + STAGES)
    store = str(pipeline.store.path)
    cli.dispatch(["run", str(recipe), "--store", store, "--dry-run"])
    told = capsys.readouterr().out
    assert all(f"tiny/{name}: run, " in told for name in ("both", "small", "on")) and "could not be planned" not in told
    made = pipelines.run(str(recipe), pipeline.store)
    layer = "self_attn.q_proj"
    by_hand = sum(w * added(pipeline, made[name], layer) for name, w in (("sft", 0.25), ("dpo", 0.75)))
    torch.testing.assert_close(added(pipeline, made["both"], layer), by_hand, rtol=0, atol=1e-6)
    assert not torch.allclose(added(pipeline, made["sft"], layer), by_hand, atol=1e-6)  # negative control
    assert made["small"].metrics["rank"] == 2 and made["on"].parents["parent"] == made["small"].digest


def test_what_a_recipe_says_wrong_of_it(pipeline: Pipeline) -> None:
    recipe = pipeline.recipe.with_name("wrong.yaml")
    recipe.write_text(pipeline.recipe.read_text() + "\n  both: {kind: blend, adapters: [sft, reward]}\n")
    with pytest.raises(
        InputError, match=r"stages\.both\.adapters: reward makes a reward artifact, but blend needs adapter"
    ):
        pipelines.load(recipe)
