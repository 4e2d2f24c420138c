"""What the backward computes again rather than keeps: results that cost little beside the matrix products around them.

A layer's norms, the product inside its gated feed-forward, and attention's scores are half of what a layer would keep
for the backward, and a few hundredths of its work (Korthikanti et al. 2022, arXiv 2205.05198, section 5, on scores;
Unsloth and Liger do it to gated products). The same operations on the same numbers: results are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.parallel.narrow import kept

NARROW = (torch.bfloat16, torch.float16)
GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")


class Origin(NamedTuple):
    """How a tensor was made, for whoever would keep it for a backward of his own."""

    compute: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def again(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`compute(*inputs)`, for whose backward the inputs alone are kept. Gradients reach nothing but the inputs."""
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in inputs):
        return compute(*inputs)
    return _noted(cast(Tensor, _Again.apply(compute, *inputs)), compute, *inputs)


def _noted(made: Tensor, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    made.origin = Origin(compute, inputs)  # type: ignore[attr-defined]
    return made


def origin_of(made: Tensor) -> Origin | None:
    """How a tensor was made, where that is noted."""
    return getattr(made, "origin", None)


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.compute = compute
        ctx.save_for_backward(*inputs)
        return compute(*inputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        given = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            made = ctx.compute(*given)
        found = iter(torch.autograd.grad(made, [x for x in given if x.requires_grad], upstream[0]))
        return None, *(next(found) if need else None for need in needed)


def keep_less(model: PreTrainedModel) -> None:
    """Have a model's norms and gated feed-forwards compute again. Which of the latter are gated is tried, once for each
    class of theirs."""
    gated: dict[type, bool] = {}
    for module in model.modules():
        kind = type(module)
        if all(hasattr(module, part) for part in GATED):
            if kind not in gated:
                gated[kind] = _is_gated(module, model.dtype)
            if gated[kind]:
                module.forward = MethodType(_feed_forward, module)
        elif "Norm" in kind.__name__ and not any(module.children()):
            module.forward = MethodType(_norm, module)


def _norm(module: nn.Module, *args: Tensor, **kwargs: object) -> Tensor:
    forward = partial(type(module).forward, module)
    if kwargs or len(args) != 1 or _trains(module, args[0]):
        return cast(Tensor, forward(*args, **kwargs))
    if args[0].dtype in NARROW:
        return again(forward, *args)
    # where nothing is widened first it keeps no more by itself, and gradients add up in the same order as they did
    return _noted(forward(*args), forward, *args)


def _feed_forward(module: Any, x: Tensor) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    product = partial(_product, module.act_fn)
    made = product(gate, up) if _trains(module.act_fn, x) else again(product, gate, up)
    return cast(Tensor, module.down_proj(made))


def _product(act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    return act(gate) * up


def _trains(module: object, x: Tensor) -> bool:
    """Whether a module has weights that train, or computes in other precisions than those of its inputs."""
    weights = module.parameters() if isinstance(module, nn.Module) else ()
    return torch.is_autocast_enabled(x.device.type) or any(p.requires_grad for p in weights)


@torch.no_grad()
def _is_gated(module: Any, dtype: torch.dtype) -> bool:
    """Whether a feed-forward is what `_feed_forward` computes."""
    try:
        gate = module.gate_proj
        x = torch.linspace(-1, 1, 2 * gate.in_features, device=kept(gate).device).view(1, 2, -1).to(dtype)
        return torch.equal(type(module).forward(module, x), _feed_forward(module, x))
    except (TypeError, RuntimeError, AttributeError):  # one that is called otherwise, or has no weights yet
        return False
