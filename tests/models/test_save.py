"""What is written of a full model, read back by safetensors and plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.distributed import mixin

from align.models.save import save_model
from tests.models.models import SIZES

TEXT = {"stop_ids": [2], "pad_token_id": 0}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_tied_head_is_written_once(tied: bool, dtype: str, tmp_path: Path) -> None:
    """Whatever precision it is stored in; one that is not tied is there."""
    config = LlamaConfig(**SIZES, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config)
    save_model(model, tmp_path, dtype, TEXT)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) is not tied  # noqa: SIM118
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied
    torch.testing.assert_close(again.lm_head.weight, model.lm_head.weight, rtol=0, atol=0)


def test_each_of_several_processes_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads again what it wrote; transformers has the first alone write, as the control does."""
    monkeypatch.setattr(mixin, "_is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr(mixin, "_get_torch_distributed_rank", lambda: 1)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.save_pretrained(tmp_path / "control")
    save_model(model, tmp_path / "ours", "fp32", TEXT)
    assert not (tmp_path / "control" / "model.safetensors").exists()
    assert (tmp_path / "ours" / "model.safetensors").exists()
