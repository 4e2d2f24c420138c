"""The methods by which a base is adapted, one entry each, and what is asked of any of them.

PEFT computes them. An entry says what PEFT needs for a fresh one and for one that was saved, which tensors are its own,
and how it is merged. Everything else asks here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from align.adapters.targets import lora_config
from align.folders.adapter import SHAPE, check_folder, resolved
from align.recipe import Lora


@dataclass(frozen=True)
class Method:
    """A kind of adapter."""

    peft_type: str
    """PEFT's name for it, which adapter_config.json holds."""
    mark: str
    """In the names of its tensors, and of no tensor of a base."""
    layer: type[BaseTunerLayer]
    """PEFT's layer around an adapted one."""
    config: Callable[[Lora, PreTrainedModel], PeftConfig]
    """Settings of a stage -> PEFT's, for a fresh adapter on this model."""
    read: Callable[[Path], PeftConfig]
    """Settings in a folder -> PEFT's, for a copy that agrees with every other. Raises: InputError."""
    scale: Callable[[Any], Tensor]
    """PEFT's settings -> the numbers that, beside its tensors, decide what it adds."""
    adds_nothing: Callable[[Mapping[str, Tensor]], bool]
    """Whether a base with these tensors of an adapter is the base."""
    delta: Callable[[Any, str], Tensor]
    """An adapted layer and an adapter's name -> what merging adds to the layer's matrix, in its shape."""


def _lora(settings: Lora, model: PreTrainedModel) -> LoraConfig:
    s = settings
    return lora_config(s.rank, s.alpha, s.targets, s.dropout, model, s.layers, s.experts)


def _read_lora(folder: Path) -> LoraConfig:
    """Without its dropout. Raises: InputError where it is no plain LoRA of linear layers."""
    config = LoraConfig.from_peft_type(**check_folder(folder, resolved))
    config.inference_mode = False
    config.lora_dropout = 0.0
    return config


def _is_b_zero(tensors: Mapping[str, Tensor]) -> bool:
    """W + s B A is W where B is 0, whatever A is; rows of tokens count as they are."""
    return not any(bool(t.any()) for key, t in tensors.items() if "lora_A" not in key and "lora_embedding_A" not in key)


METHODS: dict[str, Method] = {
    "lora": Method(
        peft_type="LORA",
        mark="lora_",
        layer=LoraLayer,
        config=_lora,
        read=_read_lora,
        scale=lambda config: torch.tensor([config.lora_alpha, config.r, float(config.use_rslora)]),
        adds_nothing=_is_b_zero,
        delta=lambda layer, name: layer.get_delta_weight(name),
    )
}
"""By the name that `adapter.method` has."""
ROWS = "trainable_tokens_"
"""In the names of rows that an adapter of any method brings for tokens: `packed.token_rows`."""


def config_of(settings: Lora, model: PreTrainedModel) -> PeftConfig:
    """PEFT's settings for a fresh adapter. Raises: InputError for what the model has not."""
    return METHODS[settings.method].config(settings, model)


def read_config(folder: Path) -> PeftConfig:
    """PEFT's settings of the adapter in a folder in PEFT's layout. Raises: InputError where it cannot be loaded."""
    try:
        found = json.loads((folder / SHAPE).read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    method = next((method for method in METHODS.values() if method.peft_type == found), METHODS["lora"])
    return method.read(folder)  # which says what is wrong with what is none of them


def method_of(config: PeftConfig) -> Method:
    """The method of PEFT's settings."""
    return next(method for method in METHODS.values() if method.peft_type == config.peft_type)


def layers() -> tuple[type[BaseTunerLayer], ...]:
    """PEFT's layers around adapted ones."""
    return tuple(method.layer for method in METHODS.values())


def holds(layer: BaseTunerLayer, name: str) -> bool:
    """Whether an adapted layer holds a part of adapter `name`."""
    return any(name in getattr(layer, kind, ()) for kind in layer.adapter_layer_names)


def of_adapter(key: str) -> bool:
    """Whether the tensor or module called `key` belongs to any adapter."""
    return ROWS in key or any(method.mark in key for method in METHODS.values())


def is_of(name: str, key: str) -> bool:
    """Whether the tensor called `key` belongs to adapter `name`."""
    return f".{name}." in f"{key}." and of_adapter(key)
