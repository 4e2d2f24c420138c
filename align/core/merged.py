"""One role's adapters merged into a plain model, for sampling and for merging: tensors that no adapter touches are shared with the base,
which is never changed."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from align.core.roles import Roles


class MergedCopy:
    """A plain model whose adapted linears hold W + (alpha / rank) B A of one role; every other tensor is the base's own storage."""

    def __init__(self, roles: Roles, role: str):
        self.names = roles.adapters[role]
        tensors = chain(roles.base.parameters(), roles.base.buffers())
        self.model: PreTrainedModel = copy.deepcopy(roles.base, {id(t): t for t in tensors})
        self.layers: list[tuple[Any, Any]] = []  # adapted layer, its twin
        for name, layer in list(roles.base.named_modules()):
            if isinstance(layer, LoraLayer):
                plain: Any = copy.copy(layer.get_base_layer())
                parent, _, leaf = name.rpartition(".")
                setattr(self.model.get_submodule(parent), leaf, plain)
                if any(name in layer.lora_A for name in self.names):
                    plain._parameters = dict(plain._parameters)
                    self.layers.append((layer, plain))
        self.drop()

    @torch.no_grad()
    def merged(self) -> PreTrainedModel:
        """The model; adapters are merged as they are now, unless they are already."""
        for layer, plain in self.layers:
            if plain.weight is None:
                weight = layer.get_base_layer().weight
                delta = sum(layer.get_delta_weight(name) for name in self.names if name in layer.lora_A)
                plain.weight = nn.Parameter((weight + delta).to(weight.dtype), requires_grad=False)  # adapters of a base in bf16 are fp32
        return self.model

    def drop(self) -> None:
        """Give the merged matrices' memory back."""
        for _, plain in self.layers:
            plain.weight = None
