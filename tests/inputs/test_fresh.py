"""A fresh adapter's targets are refused from the headers of weight files only where loading the model refuses them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PretrainedConfig

from align.adapters.methods import config_of
from align.ground.errors import InputError
from align.inputs.bases import BaseModel
from align.inputs.fresh import check_targets
from align.models.base import prepare
from align.recipe import Adapter
from align.sft import Config
from tests.models.models import CONFIGS, SIZES

MODELS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "gemma3": CONFIGS["gemma3"],
    "gpt2": CONFIGS["gpt2"],
    "phi3": CONFIGS["phi3"],
    "mixtral": MixtralConfig(**SIZES, num_local_experts=2),
}
SURE = {"llama", "tied", "gemma3"}
ASKED = [
    Adapter(targets=["nosuch"]),
    Adapter(targets=["q_proj", "lm_head"]),
    Adapter(targets=["model.embed_tokens"]),
    Adapter(targets=["input_layernorm"]),
    Adapter(experts=True),
    Adapter(),
    Adapter(targets=["mlp.up_proj"]),
    Adapter(targets=["layers.1.self_attn.q_proj"]),
    Adapter(targets=["c_attn"]),
    Adapter(targets=["qkv_proj"]),
]


def refusal(work: Any) -> str | None:
    try:
        work()
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", MODELS)
def test_what_headers_refuse_the_model_refuses(name: str, tmp_path: Path) -> None:
    """In the same words but for the reason. Negative control: where the layout is known all is refused that the model
    refuses, and elsewhere nothing is."""
    model = prepare(AutoModelForCausalLM.from_config(copy.deepcopy(MODELS[name]), dtype=torch.float32))
    model.save_pretrained(tmp_path)
    base = BaseModel(str(tmp_path), None, "0" * 64, None, tmp_path)
    for adapter in ASKED:
        config = Config(base=str(tmp_path), data="x.jsonl", adapter=adapter)  # type: ignore[arg-type]
        early = refusal(lambda: check_targets(config, base, None))  # noqa: B023
        late = refusal(lambda: config_of(adapter, model))  # noqa: B023
        assert (early is not None) == (late is not None and name in SURE), adapter
        if early and late:
            assert early.partition(": it ")[0] == late.partition(": it ")[0]


def test_nothing_is_said_of_files_that_are_not_there_or_of_an_adapter_that_goes_on(tmp_path: Path) -> None:
    """A base that is still to be made; a parent's adapter is trained on as it is, whatever a recipe says for all."""
    model = AutoModelForCausalLM.from_config(MODELS["llama"], dtype=torch.float32)
    base = BaseModel(str(tmp_path), None, "0" * 64, None, tmp_path)
    asked: Any = {"data": "x.jsonl", "adapter": Adapter(targets=["nosuch"])}
    (tmp_path / "config.json").write_text("{}")
    check_targets(Config(base=str(tmp_path), **asked), base, None)  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    check_targets(Config(parent="sft", **asked), base, "adapter")
    with pytest.raises(InputError, match="'nosuch' cannot be adapted in LlamaForCausalLM"):  # negative control
        check_targets(Config(parent="sft", parent_adapter="stack", **asked), base, "adapter")
