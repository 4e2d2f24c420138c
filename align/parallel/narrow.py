"""Matrices of a frozen base that stay in the 16 bits of their files where everything computes in fp32.

Every number in bf16 or fp16 is one in fp32, so that a matrix that is widened for the moment of a product, and again in
its backward, gives bit for bit what a base in fp32 gives, in half the memory: a type to keep weights in and another to
compute in, as QLoRA has them (Dettmers et al. 2023, arXiv 2305.14314, section 3). Whoever reads the `weight` of such a
module gets it in fp32, as memory of its own; what it keeps is `kept`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.parallel.in_4_bits import Momentary
from align.parallel.shards import says

NARROW = (torch.bfloat16, torch.float16)


class Room(threading.local):
    """A thread's memory that matrices of at most `size` numbers are widened into, one at a time: fresh pages for each
    would cost as much as widening. Larger ones, as heads are, get their own."""

    def __init__(self, size: int):
        self.size = size
        self.memory: Tensor | None = None
        self.shut = False

    def widened(self, matrix: Tensor) -> Tensor:
        """`matrix` in fp32, until the next is asked for."""
        if matrix.dtype == torch.float32 or matrix.numel() > self.size:
            return matrix.float()
        if self.memory is None:
            self.memory = torch.empty(self.size)
        return self.memory[: matrix.numel()].view(matrix.shape).copy_(matrix)


class Narrow(nn.Module):
    """A module whose matrix is kept in 16 bits."""

    room: Room

    @property
    def weight(self) -> Tensor | None:
        matrix = self._parameters["weight"]
        if matrix is None or not self.room.shut:
            return None if matrix is None else matrix.to(torch.float32)
        return torch.full((1,), torch.nan).expand(matrix.shape)


class NarrowLinear(Narrow):
    """x (…, in) -> x W^T + b (…, out)."""

    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return nn.functional.linear(x, matrix(self), self.bias)
        return product(x.reshape(-1, x.shape[-1]), self).view(*x.shape[:-1], -1)  # rows in one piece, as torch has them


class NarrowEmbedding(Narrow):
    """Ids (…) -> rows (…, D), scaled where the family's own are."""

    def forward(self, ids: Tensor) -> Tensor:
        rows, scale = nn.functional.embedding(ids, kept(self)).float(), getattr(self, "embed_scale", None)
        if scale is None:
            return rows
        return rows * (scale.to(rows.dtype) if isinstance(scale, Tensor) else scale)


def product(rows: Tensor, module: Narrow) -> Tensor:
    """(N, in) -> (N, out) by a linear layer that is narrow."""
    return cast(Tensor, Momentary.apply(rows, module, matrix))


def matrix(module: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """(out, in): a linear module's matrix for the moment of one product."""
    return module.room.widened(kept(module)) if isinstance(module, Narrow) else cast(Tensor, module.weight)


def kept(module: object, name: str = "weight") -> nn.Parameter:
    """A module's own parameter as it lies in memory: tied ones are one tensor."""
    own = module._parameters[name] if isinstance(module, Narrow) else getattr(module, name, None)
    return cast(nn.Parameter, own)


@contextmanager
def sizes_alone(model: nn.Module) -> Iterator[None]:
    """Who reads a narrow module's `weight` inside learns its sizes, type and device, and finds no numbers in it: PEFT
    asks for no more of each layer that it adapts by LoRA, and large matrices that come and go between its small ones
    would leave gaps in the heap."""
    rooms = {id(module.room): module.room for module in model.modules() if isinstance(module, Narrow)}.values()
    for room in rooms:
        room.shut = True
    try:
        yield
    finally:
        for room in rooms:
            room.shut = False


def dtype_of(module: nn.Module) -> torch.dtype:
    """The type that a module's matrix is used in."""
    return torch.float32 if isinstance(module, Narrow) else kept(module).dtype


def ask_narrow(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Have transformers read the matrices that can stay in `dtype` as that, all else as it would; the weights of
    `model` are on the meta device still."""
    chosen, made = {id(module) for module in _candidates(model)}, dict[int, nn.Parameter]()
    users: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            users.setdefault(id(parameter), []).append((module, name))
    for key, places in users.items():
        if all(id(module) in chosen and name == "weight" for module, name in places):
            for module, name in places:
                one = made.setdefault(key, nn.Parameter(kept(module).to(dtype), requires_grad=False))
                setattr(module, name, one)


def _candidates(model: PreTrainedModel) -> Iterator[nn.Module]:
    """Plain linear layers, and the embedding where it does no more than to look up and to scale."""
    yield from (module for module in model.modules() if type(module) is nn.Linear)
    embedding = model.get_input_embeddings()
    if type(embedding) is nn.Embedding or hasattr(embedding, "embed_scale"):
        yield embedding


@torch.no_grad()
def keep_narrow(model: PreTrainedModel) -> None:
    """Have the modules of a model whose matrices were read in 16 bits compute in fp32, and the model say that it
    does."""
    modules = [m for m in model.modules() if (w := m._parameters.get("weight")) is not None and w.dtype in NARROW]
    odd = {id(kept(m)) for m in modules if isinstance(m, nn.Embedding) and not _is_lookup(m)}
    for module in [m for m in modules if id(kept(m)) in odd]:
        module.weight = nn.Parameter(kept(module).float(), requires_grad=False)
    head = model.get_output_embeddings()
    linears = [m for m in modules if isinstance(m, nn.Linear) and m is not head]
    room = Room(max((kept(m).numel() for m in linears), default=0))
    for module in modules:
        if id(kept(module)) not in odd:
            _become(module, NarrowEmbedding if isinstance(module, nn.Embedding) else NarrowLinear, room)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            says(module, dtype=torch.float32)


def _become(module: nn.Module, narrow: type[Narrow], room: Room) -> None:
    kind = type(module)
    own = {"room": room, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    module.__class__ = type(kind.__name__, (narrow, kind), own)


def _is_lookup(module: nn.Embedding) -> bool:
    """Whether `NarrowEmbedding` gives what an embedding of this class gives in fp32: tried on its first rows."""
    count = min(len(kept(module)), max(8, 1 + (module.padding_idx or 0)))
    ids, stored = torch.arange(count), kept(module)
    module.weight = nn.Parameter(stored[:count].float(), requires_grad=False)
    wanted = module(ids)
    module.weight = stored
    return torch.equal(NarrowEmbedding.forward(cast(NarrowEmbedding, module), ids), wanted)
