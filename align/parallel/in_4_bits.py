"""Linear layers in 4 bits, in shards.

bitsandbytes' parameter class does not survive that: class and state are lost. A plain parameter of bytes does, and the
state, 3 % of its size, stays whole on the layer, where `dequantised` finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NOTED = ("compress_statistics", "quant_type")
"""What PEFT asks of a weight when it adapts its layer."""


class Linear(nn.Module):
    """What is read of such a layer, for types alone."""

    weight: nn.Parameter
    bias: Tensor | None
    quant_state: Any
    noted: dict[str, object]


def is_4bit(module: nn.Module) -> bool:
    return type(module).__name__ == "Linear4bit"


def dequantised(module: Linear, dtype: torch.dtype) -> Tensor:
    """The layer's matrix (out, in), for the moment."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = module.weight
    state = getattr(weight, "quant_state", None) or module.quant_state
    return dequantize_4bit(weight.data, state).to(dtype)


def make_plain(module: Linear) -> None:
    """Give the layer a weight that can be cut, and a forward that reads it."""
    weight: Any = module.weight
    module.quant_state = weight.quant_state
    module.noted = {key: getattr(weight, key) for key in NOTED}
    module.weight = nn.Parameter(weight.data, requires_grad=False)
    module.forward = lambda x: Momentary.apply(x, module, dequantised)


def note(module: Linear) -> None:
    """Say again, on the part of the weight that is here, what PEFT asks of it."""
    for key, value in module.noted.items():
        setattr(module.weight, key, value)


class Momentary(torch.autograd.Function):
    """x (…, in) -> x W^T + b (…, out), for a frozen W that `matrix(module, dtype)` makes for the moment; the backward
    makes it again, of a weight that may be gathered again by then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Linear, matrix: Callable[..., Tensor]) -> Tensor:
        ctx.module, ctx.dtype, ctx.matrix = module, x.dtype, matrix
        bias = None if module.bias is None else module.bias.to(x.dtype)
        return nn.functional.linear(x, matrix(module, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ ctx.matrix(ctx.module, ctx.dtype), None, None
