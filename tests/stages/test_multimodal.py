"""A checkpoint that reads images too trains its text part: nothing else is touched, and all of it is there again when
it leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, LlavaConfig, Qwen3_5Config

import align
from align import dpo, merge, pretrain, sft
from align.report.code import load_lines
from align.store import Store
from tests.conftest import ROOT, write_rows

TINY = ROOT / "data/tiny-base"
TEXT = dict(
    vocab_size=896,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=0,
    eos_token_id=1,
)
LINEAR = dict(linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16)
VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)
CONFIGS = {
    # transformers knows no language model for this kind,
    "llava": LlavaConfig(
        text_config=TEXT | {"model_type": "llama"},
        vision_config=VISION | {"model_type": "clip_vision_model"},
        image_token_index=890,
    ),
    # and for this one it has a language model that leaves the vision part out
    "qwen3_5": Qwen3_5Config(
        text_config=TEXT | LINEAR | {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"]},
        vision_config=dict(
            hidden_size=16, intermediate_size=24, depth=1, num_heads=2, out_hidden_size=32, patch_size=14
        ),
    ),
}


def of_vision(name: str) -> bool:
    return any(part in name for part in ("vision", "visual", "projector"))


def made_by(lines: list[str], checkout: Path) -> Tensor:
    """The logits of the model that printed lines load, with nothing of Align."""
    code = [
        line.strip().replace("DIR", str(checkout))
        for line in lines
        if line.startswith("  ") and not line.startswith("  align ")
    ]
    start = next(i for i, line in enumerate(code) if line.startswith(("from peft", "from transformers")))
    scope: dict[str, Any] = {}
    exec("\n".join(code[start : next(i for i, line in enumerate(code) if line.startswith("tokenizer = "))]), scope)
    return logits(scope["model"])


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=torch.tensor([[5, 9, 30, 44, 12, 7]])).logits.float()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "llava" else ()) for name in CONFIGS]
)
# PEFT 0.21 reads the old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_its_text_part_trains(tmp_path: Path, name: str):
    torch.manual_seed(0)
    base, store = tmp_path / "base", Store(tmp_path / "store")
    AutoModelForImageTextToText.from_config(CONFIGS[name]).float().save_pretrained(base)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / file, base)
    (base / "preprocessor_config.json").write_text('{"do_resize": true}')
    (base / "processor_config.json").write_text('{"auto_map": {"AutoProcessor": "evil.Processor"}}')
    rows = [
        {"prompt": f"What is {a} plus {b}?", "chosen": f"It is {a + b}.", "rejected": "Who knows?"}
        for a, b in [(3, 4), (1, 8)]
    ]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    demos = write_rows(tmp_path / "sft.jsonl", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows])
    common: dict[str, Any] = dict(
        batch_size=2, eval_fraction=0, max_steps=2, learning_rate=0.01, precision="fp32", threads=1
    )
    start = sft.run(sft.Config(base={"model": str(base)}, data=str(demos), **common), store)  # type: ignore[arg-type]
    trained = dpo.run(dpo.Config(parent=start.digest, data=str(pairs), activation_checkpointing=True, **common), store)
    adapter = load_file(store.folder(trained) / "adapters/0/adapter_model.safetensors")
    assert adapter and not [key for key in adapter if of_vision(key)]
    assert all(tensor.abs().max() > 0 for key, tensor in adapter.items() if "lora_B" in key)

    model, _ = align.load(trained, store)
    shown = load_lines(store, trained, "dpo")
    assert torch.allclose(made_by(shown, store.materialise(trained, tmp_path / "adapter")), logits(model), atol=1e-5)
    assert not torch.allclose(
        logits(AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)), logits(model), atol=1e-3
    )

    merged = merge.run(merge.Config(parent=trained.digest, precision="fp32", threads=1), store)
    assert merged.metrics["verdict"] == "equal"
    folder = store.materialise(merged, tmp_path / "merged")
    assert torch.allclose(made_by(load_lines(store, merged, "merged"), folder), logits(model), atol=1e-5)
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model/model.safetensors")
    assert before.keys() == after.keys() and any(map(of_vision, before))
    assert all(torch.equal(before[key], after[key]) for key in before if of_vision(key))
    assert [key for key in before if not torch.equal(before[key], after[key])]  # negative control
    architectures = [
        json.loads((place / "config.json").read_text())["architectures"] for place in (base, folder / "model")
    ]
    assert architectures[0] == architectures[1]
    assert (folder / "model/preprocessor_config.json").read_text() == '{"do_resize": true}'
    assert not (folder / "model/processor_config.json").exists()

    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "Three plus four is seven."}] * 8)
    config = pretrain.Config(
        base={"model": str(base)}, data=str(texts), method="full", save_dtype="fp32", max_length=64, **common
    )  # type: ignore[arg-type]
    after = load_file(store.folder(pretrain.run(config, store)) / "model/model.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and not [key for key in changed if of_vision(key)]
