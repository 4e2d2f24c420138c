"""Shapes of bases, from config.json and from weight files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.folders.adapter_settings import SHAPE
from align.memory.known import known_artifact
from align.memory.shapes import Shape, headers, weights_in
from align.store import Artifact, Store
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


def test_rows_of_tokens_keep_a_base_from_staying_in_16_bits(trained: Pipeline, monkeypatch: pytest.MonkeyPatch):
    """As `layout.in_16_bits` has it, whichever stage brought them; the control is the adapter as it is."""
    read = Store.read

    def with_rows(self: Store, artifact: Artifact, path: str) -> bytes:
        found = read(self, artifact, path)
        if not path.endswith(SHAPE):
            return found
        return json.dumps(json.loads(found) | {"trainable_token_indices": {"embed_tokens": [300]}}).encode()

    assert known_artifact(trained.store, trained.made["sft"]).shape.may_stay
    monkeypatch.setattr(Store, "read", with_rows)
    assert not known_artifact(trained.store, trained.made["sft"]).shape.may_stay
