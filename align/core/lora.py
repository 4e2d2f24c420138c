"""LoRA's linear layer with a hand-written forward and backward: PEFT's result, without its elementwise passes over (T, out).

y = x W^T + b + sum_i s_i (x A_i^T) B_i^T (Hu et al. 2021, arXiv 2106.09685, eq. 3). PEFT writes that as separate operations, each of which
autograd follows with a pass over the whole output; here the low-rank parts are accumulated into the matrix products' own results.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


class _LoraLinear(torch.autograd.Function):
    """forward(x (T, in), W (out, in), b (out) or None, scalings, A_1 (R, in), B_1 (out, R), A_2 …) -> (T, out); W and b are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scalings: tuple[float, ...], *factors: Tensor) -> Tensor:
        out = nn.functional.linear(x, weight, bias)
        lows = []
        for scaling, a, b in zip(scalings, factors[0::2], factors[1::2], strict=True):
            low = x @ a.T
            out.addmm_(low, b.T, alpha=scaling)
            lows.append(low)
        ctx.save_for_backward(x, weight, *lows, *factors)
        ctx.scalings = scalings
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (grad,) = upstream
        x, weight, *rest = ctx.saved_tensors
        n = len(ctx.scalings)
        lows, factors = rest[:n], rest[n:]
        needs_x, _, _, _, *needs = ctx.needs_input_grad
        grad_x = grad @ weight if needs_x else None
        grads: list[Tensor | None] = []
        for i, (scaling, a, b) in enumerate(zip(ctx.scalings, factors[0::2], factors[1::2], strict=True)):
            low_grad = (grad @ b).mul_(scaling)  # (T, R)
            if grad_x is not None:
                grad_x.addmm_(low_grad, a)
            grads.append(low_grad.T @ x if needs[2 * i] else None)
            grads.append((grad.T @ lows[i]).mul_(scaling) if needs[2 * i + 1] else None)
        return grad_x, None, None, None, *grads


def fuse(model: nn.Module) -> None:
    """Give every LoRA layer whose base is a plain linear layer the fused forward. Others, quantised ones among them, keep PEFT's."""
    for layer in model.modules():
        if type(layer) is Linear and type(layer.get_base_layer()) is nn.Linear:
            layer.forward = _bound(layer)  # type: ignore[method-assign]


def _bound(layer: Linear) -> Any:
    peft_forward = type(layer).forward.__get__(layer)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        base: Any = layer.get_base_layer()
        factors = [w for name in names for w in (layer.lora_A[name].weight, layer.lora_B[name].weight)]
        plain = all(isinstance(layer.lora_dropout[name], nn.Identity) or not layer.training for name in names)
        same = all(f.dtype == x.dtype == base.weight.dtype for f in factors) and not torch.is_autocast_enabled(x.device.type)
        if not names:
            return base(x)
        if base.weight.requires_grad or not plain or not same or args or kwargs:
            return peft_forward(x, *args, **kwargs)
        flat = x.reshape(-1, x.shape[-1])
        scalings = tuple(float(layer.scaling[name]) for name in names)
        return _LoraLinear.apply(flat, base.weight, base.bias, scalings, *factors).view(*x.shape[:-1], -1)

    return forward
