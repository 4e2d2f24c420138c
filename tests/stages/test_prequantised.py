"""Checkpoints that bitsandbytes quantised already: bases like any other, recorded as they are, dequantised when they
are merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import align
from align import memory, merge, models, pretrain, sft
from align.ground.errors import InputError
from align.report.code import load_lines
from align.stage.ahead import dry_run
from align.store import Artifact, Store
from tests.conftest import ROOT, write_rows

TINY = ROOT / "data/tiny-base"
SCHEMES: dict[str, dict[str, Any]] = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
WEIGHTS = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(TINY).parameters())
COMMON: dict[str, Any] = {
    "batch_size": 4,
    "eval_fraction": 0,
    "precision": "fp32",
    "threads": 1,
    "max_steps": 2,
    "learning_rate": 0.01,
}


@pytest.fixture(scope="module", params=["nf4", pytest.param("fp4", marks=pytest.mark.slow), "int8"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path, Store, Artifact]:
    """(scheme, checkpoint, data, store, what SFT made on it without being told)."""
    place = tmp_path_factory.mktemp(request.param)
    checkpoint = place / "checkpoint"
    model = AutoModelForCausalLM.from_pretrained(
        TINY, quantization_config=BitsAndBytesConfig(**SCHEMES[request.param]), dtype=torch.float32
    )
    model.save_pretrained(checkpoint)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / file, checkpoint)
    sums = [(3, 4), (2, 2), (1, 8), (5, 1)]
    data = write_rows(
        place / "sft.jsonl", [{"prompt": f"What is {a} plus {b}?", "completion": f"It is {a + b}."} for a, b in sums]
    )
    store = Store(place / "store")
    return request.param, checkpoint, data, store, sft.run(settings(checkpoint, data), store)


def settings(checkpoint: Path, data: Path, quantize: str | None = None) -> sft.Config:
    return sft.Config(base={"model": str(checkpoint), "quantize": quantize}, data=str(data), **COMMON)  # type: ignore[arg-type]


def test_recorded_as_it_is(made: tuple[str, Path, Path, Store, Artifact]):
    scheme, checkpoint, data, store, trained = made
    assert trained.base is not None and trained.base["quantize"] == scheme
    lines = "\n".join(load_lines(store, trained, "sft"))
    given = SCHEMES[scheme]
    assert ("load_in_8bit=True" in lines) == ("load_in_8bit" in given)
    assert f'bnb_4bit_quant_type="{given.get("bnb_4bit_quant_type")}"' in lines or scheme == "int8"
    planned = dry_run.memory_plan(sft.STAGE, settings(checkpoint, data), store, memory.Inquiry("cpu"))
    assert isinstance(plan := planned["sft"], memory.MemoryPlan) and plan.work.quantize == scheme
    # and not the entries of its files, which hold two weights each in 4 bits
    assert plan.work.shape.weights == WEIGHTS
    model, _ = align.load(trained, store)
    assert {type(m).__name__ for m in model.modules()} & {"Linear4bit", "Linear8bitLt"}


def test_what_contradicts_it_is_refused(made: tuple[str, Path, Path, Store, Artifact]):
    """Said again it is the same question, as far as it can be said."""
    scheme, checkpoint, data, store, trained = made
    for wanted in ("nf4", "int8"):
        if wanted == scheme:
            assert sft.run(settings(checkpoint, data, wanted), store) == trained
        else:
            with pytest.raises(
                InputError, match=f"quantize is {wanted}, but .*checkpoint is quantised already, in {scheme}. Leave out"
            ):
                sft.run(settings(checkpoint, data, wanted), store)
            with pytest.raises(InputError, match="quantised already"):
                models.base.load_base(checkpoint, quantize=wanted, dtype=torch.float32)
    base: Any = {"model": str(checkpoint)}
    texts = write_rows(data.parent / "texts.jsonl", [{"text": "Three plus four is seven."}] * 8)
    with pytest.raises(InputError, match="method: full cannot train a quantised base"):
        pretrain.run(pretrain.Config(base=base, data=str(texts), method="full", max_steps=1), store)


def test_merged_into_the_weights_that_it_stands_for(made: tuple[str, Path, Path, Store, Artifact]):
    """The dequantised matrices as transformers gives them, plus PEFT's (alpha / rank) B A; config.json says nothing of
    quantisation."""
    _, checkpoint, _, store, trained = made
    merged = merge.run(merge.Config(parent=trained.digest, precision="fp32", threads=1), store)
    assert merged.metrics["verdict"] == "equal" and "quantised/kl" in merged.metrics
    folder = store.folder(merged) / "model"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    truth = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).dequantize(torch.float32).state_dict()
    found = load_file(folder / "model.safetensors")
    adapter = load_file(store.folder(trained) / "adapters/0/adapter_model.safetensors")
    shape = json.loads((store.folder(trained) / "adapters/0/adapter_config.json").read_text())
    name = "model.layers.1.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    delta = (shape["lora_alpha"] / shape["r"]) * b @ a
    torch.testing.assert_close(found[f"{name}.weight"], truth[f"{name}.weight"] + delta, atol=1e-6, rtol=0)
    # negative controls: not the base alone,
    assert (found[f"{name}.weight"] - truth[f"{name}.weight"]).abs().max() > 1e-5
    original = load_file(TINY / "model.safetensors")[f"{name}.weight"]
    # and not the weights from before they were quantised
    assert (found[f"{name}.weight"] - original - delta).abs().max() > 1e-4


def test_a_head_that_is_quantised_too_is_refused(tmp_path: Path):
    scheme = BitsAndBytesConfig(**SCHEMES["nf4"], llm_int8_skip_modules=["none"])
    model = AutoModelForCausalLM.from_pretrained(
        TINY, quantization_config=scheme, dtype=torch.float32, tie_word_embeddings=False
    )
    assert type(model.lm_head).__name__ == "Linear4bit"
    model.save_pretrained(tmp_path)
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    with pytest.raises(
        InputError, match="is quantised in its head too; name a language model whose head is a plain matrix"
    ):
        models.base.load_base(tmp_path, quantize=None, dtype=torch.float32)
