"""Shapes of bases, from config.json and from weight files."""

from __future__ import annotations

import json
from pathlib import Path

from align.memory.shapes import Shape, headers, weights_in
from tests.conftest import Pipeline


def test_shapes_of_a_real_folder(trained: Pipeline, tmp_path: Path):
    """config.json and the headers of weight files agree on how many weights there are."""
    folder = trained.store.folder(trained.made["pretrain"]) / "model"
    shape = Shape.from_config(json.loads((folder / "config.json").read_text()))
    assert isinstance(shape, Shape) and not shape.is_estimate
    assert weights_in(headers(folder)) == shape.weights
    assert weights_in(headers(tmp_path)) is None
    assert Shape.from_config({"model_type": "llama", "hidden_size": 8}) == "num_hidden_layers"
    bloom = Shape.from_config({"model_type": "bloom", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 9})
    assert isinstance(bloom, Shape) and bloom.is_estimate
