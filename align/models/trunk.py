"""The frozen trunk of a decoder: the layers below the first one that trains, cut from those above it.

With adapters on the top layers alone, what enters the first of them is the same in every epoch and for every role:
`Trunk.bottom` computes it, `Trunk.top` goes on from it. Both are shallow copies of transformers' own decoder that share
every layer with it; where a layer is left out a stand-in takes its place, so that embeddings, rotations and what else
an architecture does around its layers stay its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from align.packed.forward import run_packed
from align.packed.layers import layers_of
from align.packed.pack import Batch


class Trunk:
    """A decoder cut before layer `depth`. `roles`: those for which the layers below are the same, whose rows `top`
    serves."""

    def __init__(self, model: PreTrainedModel, depth: int):
        self.depth = depth
        self.roles: set[str] = set()
        decoder: Any = model.base_model
        name, layers = layers_of(model)
        self._hidden: Tensor | None = None
        self.dtype = model.dtype  # of what is given to the upper layers; `bottom` notes what it found
        self._bottom = _with_layers(
            decoder, name, [*layers[:depth], *(_stand_in(layer, self._note) for layer in layers[depth:])]
        )
        self._top = _with_layers(
            decoder, name, [*(_stand_in(layer, self._give) for layer in layers[:depth]), *layers[depth:]]
        )

    def bottom(self, batch: Batch) -> Tensor:
        """What enters layer `depth`: (T, D)."""
        run_packed(self._bottom, batch)
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        self.dtype = hidden.dtype
        return hidden[0]

    def top(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """Last hidden states of `rows`, (N, D), or of all, (T, D), from `batch.trunk (T, D)`; the layers below do not
        run, neither forward nor backward."""
        assert batch.trunk is not None
        self._hidden = batch.trunk.to(self.dtype)[None]
        try:
            return run_packed(self._top, batch, rows)
        finally:
            self._hidden = None

    def _note(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        self._hidden = hidden
        return hidden

    def _give(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        assert self._hidden is not None
        return self._hidden


def _with_layers(decoder: nn.Module, name: str, layers: list[nn.Module]) -> nn.Module:
    """A shallow copy of a decoder, every tensor shared, over other layers."""
    twin: nn.Module = object.__new__(type(decoder))  # FSDP's modules refuse to be copied
    twin.__dict__.update(vars(decoder))
    twin._modules = {**decoder._modules, name: nn.ModuleList(layers)}
    return twin


def _stand_in(layer: nn.Module, forward: Callable[..., Tensor]) -> nn.Module:
    """A layer by its attributes, which decoders read, without its hooks and its work."""
    twin = nn.Module()
    twin.__dict__.update({key: value for key, value in vars(layer).items() if key not in vars(twin)})
    twin._modules = layer._modules
    twin.forward = forward
    return twin
