"""One role's adapters merged into a plain model, for sampling and for merging: tensors that no adapter touches are
shared with the base, which is never changed."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from align.adapters.methods import Method, holds, layers, method_of
from align.ground.progress import each
from align.models.roles import Roles
from align.packed.token_rows import TokenRows, bare
from align.parallel.narrow import Narrow, kept


@torch.no_grad()
def merge_gathered(roles: Roles, role: str) -> None:
    """Merge a role's adapters into the base's own matrices, inside `roles.whole()`: shards stay as they are."""
    for layer in roles.adapted:
        held = [name for name in roles.adapters[role] if holds(layer, name)]
        plain: Any = layer.get_base_layer()
        for matrix in changed(layer, plain, [method_of(roles.configs[name]) for name in held]):
            getattr(plain, matrix).copy_(method_of(roles.configs[held[0]]).merged(layer, held, matrix))


def changed(layer: Any, plain: Any, methods: Sequence[Method]) -> list[str]:
    """Names of an adapted layer's parameters that merging its adapters of these methods changes."""
    if not methods or hasattr(layer, "parameter_name"):
        return [layer.parameter_name] if methods else []
    return [name for name in methods[0].changes if kept(plain, name) is not None]


class MergedCopy:
    """A plain model with the adapted matrices of one role, such as LoRA's W + (alpha / rank) B A, and its rows in
    embedding and head; every other tensor is the base's own storage."""

    def __init__(self, roles: Roles, role: str):
        self.names = roles.adapters[role]
        self.methods = {name: method_of(roles.configs[name]) for name in self.names}
        tensors = chain(roles.base.parameters(), roles.base.buffers())
        self.model: PreTrainedModel = copy.deepcopy(roles.base, {id(t): t for t in tensors})
        places = Counter(id(p) for _, p in roles.base.named_parameters(remove_duplicate=False))
        self.tied = {found for found, times in places.items() if times > 1}
        # adapted layer, its plain twin, and the parameter of both that is adapted
        self.matrices: list[tuple[Any, Any, str]] = []
        for name, layer in list(roles.base.named_modules()):
            # a layer inside another: experts with two matrices
            if not isinstance(layer, layers()) or name.endswith(".base_layer"):
                continue
            parent, _, leaf = name.rpartition(".")
            plain = cast(Any, self.model.get_submodule(name)).get_base_layer()
            setattr(self.model.get_submodule(parent), leaf, plain)
            while isinstance(layer, layers()):
                held = [self.methods[name] for name in self.names if holds(layer, name)]
                self.matrices += [(layer, plain, matrix) for matrix in changed(layer, plain, held)]
                layer = cast(nn.Module, layer.base_layer)  # type: ignore[attr-defined]
        self.embeddings: list[tuple[TokenRows, Any]] = []  # with rows of adapters, and its plain twin
        for name, rows in [(name, rows) for name, rows in roles.base.named_modules() if isinstance(rows, TokenRows)]:
            parent, _, leaf = name.rpartition(".")
            plain = bare(self.model.get_submodule(name))
            setattr(self.model.get_submodule(parent), leaf, plain)
            if rows.having(self.names):
                self.embeddings.append((rows, plain))
        self.drop()

    @torch.no_grad()
    def merged(self, into_base: bool = False) -> PreTrainedModel:
        """The model; adapters are merged as they are now, unless they are already.

        `into_base`: in the base's own memory, whose matrices are the merged ones from then on, but for those that it
        ties to others: for who needs the base no more.
        """
        fresh = [(layer, plain, matrix) for layer, plain, matrix in self.matrices if kept(plain, matrix) is None]
        # all of them before what comes and goes, which would leave gaps between them
        for layer, plain, matrix in fresh:
            weight = kept(layer.get_base_layer(), matrix)
            here = into_base and id(weight) not in self.tied and not isinstance(plain, Narrow)
            dtype = torch.float32 if isinstance(plain, Narrow) else weight.dtype
            merged = weight if here else torch.empty_like(weight, dtype=dtype)
            setattr(plain, matrix, nn.Parameter(merged, requires_grad=False))
        for layer, plain, matrix in each("merging adapters", fresh, "matrices") if fresh else ():
            held = [name for name in self.names if holds(layer, name)]
            getattr(plain, matrix).copy_(self.methods[held[0]].merged(layer, held, matrix))
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
