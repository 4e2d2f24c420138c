"""One role's adapters merged into a plain model, for sampling and for merging: tensors that no adapter touches are
shared with the base, which is never changed."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from align.models.roles import Roles
from align.packed.token_rows import TokenRows, bare


class MergedCopy:
    """A plain model whose adapted matrices are W + (alpha / rank) B A of one role, and embedding and head hold its
    rows; every other tensor is the base's own storage."""

    def __init__(self, roles: Roles, role: str):
        self.names = roles.adapters[role]
        tensors = chain(roles.base.parameters(), roles.base.buffers())
        self.model: PreTrainedModel = copy.deepcopy(roles.base, {id(t): t for t in tensors})
        # adapted layer, its plain twin, and the parameter of both that is adapted
        self.matrices: list[tuple[Any, Any, str]] = []
        for name, layer in list(roles.base.named_modules()):
            # a layer inside another: experts with two matrices
            if not isinstance(layer, LoraLayer) or name.endswith(".base_layer"):
                continue
            parent, _, leaf = name.rpartition(".")
            plain = cast(Any, self.model.get_submodule(name)).get_base_layer()
            setattr(self.model.get_submodule(parent), leaf, plain)
            while isinstance(layer, LoraLayer):
                if any(name in layer.lora_A for name in self.names):
                    self.matrices.append((layer, plain, getattr(layer, "parameter_name", "weight")))
                layer = layer.base_layer
        self.embeddings: list[tuple[TokenRows, Any]] = []  # with rows of adapters, and its plain twin
        for name, rows in [(name, rows) for name, rows in roles.base.named_modules() if isinstance(rows, TokenRows)]:
            parent, _, leaf = name.rpartition(".")
            plain = bare(self.model.get_submodule(name))
            setattr(self.model.get_submodule(parent), leaf, plain)
            if rows.having(self.names):
                self.embeddings.append((rows, plain))
        self.drop()

    @torch.no_grad()
    def merged(self) -> PreTrainedModel:
        """The model; adapters are merged as they are now, unless they are already."""
        for layer, plain, matrix in self.matrices:
            if getattr(plain, matrix) is None:
                weight = getattr(layer.get_base_layer(), matrix)
                delta = sum(layer.get_delta_weight(name) for name in self.names if name in layer.lora_A)
                # adapters of a base in bf16 are fp32
                setattr(plain, matrix, nn.Parameter((weight + delta).to(weight.dtype), requires_grad=False))
        made: dict[int, nn.Parameter] = {}  # tied ones stay one tensor
        for rows, plain in self.embeddings:
            if plain.weight is None:
                weight = rows.original_module.weight
                if id(weight) not in made:
                    whole = rows.token_adapter.get_merged_weights(rows.having(self.names))
                    made[id(weight)] = nn.Parameter(whole, requires_grad=False)
                plain.weight = made[id(weight)]
        return self.model

    def drop(self) -> None:
        """Give the merged matrices' memory back."""
        for _, plain, matrix in self.matrices:
            setattr(plain, matrix, None)
        for _, plain in self.embeddings:
            plain.weight = None
