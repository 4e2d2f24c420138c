"""LoRA's linear layers with a hand-written forward and backward: PEFT's result, without its elementwise passes over (T,
out).

y = x W^T + b + sum_i s_i (x A_i^T) B_i^T (Hu et al. 2021, arXiv 2106.09685, eq. 3). PEFT writes that as separate
operations, each of which autograd follows with a pass over the whole output; here the low-rank parts are accumulated
into the matrix products' own results. Layers that read the same x, as query, key and value do, are computed together:
one low-rank product for all of them, and one gradient of x that all of them add to. Which do is observed. Adapters in
fp32 beside a base in bf16 are rounded to bf16 for the products, as autocast does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.packed.again import Origin, origin_of
from align.packed.attention import native_attention
from align.packed.forward import read
from align.parallel.in_4_bits import dequantised, is_4bit
from align.parallel.narrow import NarrowLinear, dtype_of, kept, matrix


@dataclass(frozen=True)
class Output:
    """One layer among those that read the same x: its frozen part, and the scales of the adapters that are active on
    it."""

    base: Any
    scalings: tuple[float, ...]

    def weight(self, dtype: torch.dtype) -> Tensor:
        """(out, in); of a base in 4 bits dequantised for the moment, of one that is kept in 16 widened."""
        return dequantised(self.base, dtype) if is_4bit(self.base) else matrix(self.base)


class _LoraLinears(torch.autograd.Function):
    """forward(x (T, in), origin, outputs, A_1 (R, in), B_1 (out, R), A_2 …) -> one (T, out) per output; the factors are
    those of all adapters of the first output, then of the second …; weights and biases are frozen. With an `origin`
    the backward makes x again from what that takes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, origin: Origin | None, outputs: Sequence[Output], *factors: Tensor
    ) -> tuple[Tensor, ...]:
        a = torch.cat([f.to(x.dtype) for f in factors[0::2]])  # (sum of R, in)
        b = [f.to(x.dtype) for f in factors[1::2]]
        low = x @ a.T  # (T, sum of R)
        lows = iter(zip(low.split([f.shape[1] for f in b], 1), b, strict=True))
        results = []
        for output in outputs:
            bias = output.base.bias
            out = nn.functional.linear(x, output.weight(x.dtype), None if bias is None else bias.to(x.dtype))
            for scaling in output.scalings:
                part, up = next(lows)
                out.addmm_(part, up.T, alpha=scaling)
            results.append(out)
        # what is dequantised is dequantised again: weights are saved only where they are there anyway
        kept = origin.inputs if origin else (x,)
        ctx.save_for_backward(low, a, *kept, *b)
        ctx.compute, ctx.kept = origin.compute if origin else None, len(kept)
        ctx.outputs, ctx.dtypes = outputs, [f.dtype for f in factors]
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        low, a, *more = ctx.saved_tensors  # (T, sum of R), (sum of R, in)
        kept, b = more[: ctx.kept], more[ctx.kept :]  # x (T, in) or what it is made of; (out, R) each
        needs_x, _, _, *needs = ctx.needs_input_grad
        ranks = [up.shape[1] for up in b]
        # per adapter of each output: the gradient (T, out) of that output, and the adapter's scale
        owners = [(grad, s) for output, grad in zip(ctx.outputs, upstream, strict=True) for s in output.scalings]
        low_grad = torch.cat([grad @ (up * s) for (grad, s), up in zip(owners, b, strict=True)], 1)  # (T, sum of R)
        grad_x = None
        if needs_x:
            for output, grad in zip(ctx.outputs, upstream, strict=True):
                weight = output.weight(low.dtype)  # (out, in)
                grad_x = grad @ weight if grad_x is None else grad_x.addmm_(grad, weight)
            assert grad_x is not None
            grad_x.addmm_(low_grad, a)  # (T, in) += (T, sum of R) (sum of R, in)
        down_grads: Sequence[Tensor] = ()  # (R, in) each
        if any(needs[0::2]):
            x = ctx.compute(*kept).reshape(-1, a.shape[1]) if ctx.compute else kept[0]
            down_grads = (low_grad.T @ x).split(ranks)
        grads: list[Tensor | None] = []
        for i, ((grad, s), part) in enumerate(zip(owners, low.split(ranks, 1), strict=True)):  # part (T, R)
            grads.append(down_grads[i].to(ctx.dtypes[2 * i]) if needs[2 * i] else None)
            up_grad = (grad.T @ part).to(ctx.dtypes[2 * i + 1]).mul_(s) if needs[2 * i + 1] else None  # (out, R)
            grads.append(up_grad)
        return grad_x, None, None, *grads


class _Together:
    """Layers that read the same tensor: whichever is called first computes all of them, the others take their part."""

    def __init__(self, layers: Sequence[Any]):
        self.layers = layers
        self.x: Tensor | None = None
        self.version = 0
        self.ready: dict[int, Tensor] = {}

    def __call__(self, i: int, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        layer = self.layers[i]
        if not _names(layer):
            return torch.as_tensor(layer.get_base_layer()(x))
        if args or kwargs or not _covered(layer, x):
            return torch.as_tensor(type(layer).forward(layer, x, *args, **kwargs))
        if self.x is not x or self.version != x._version or i not in self.ready:
            self.x, self.version, self.ready = x, x._version, self._compute(x)
        out = self.ready.pop(i)
        if not self.ready:
            self.x = None
        return out

    def _compute(self, x: Tensor) -> dict[int, Tensor]:
        which = [j for j, layer in enumerate(self.layers) if _names(layer) and _covered(layer, x)]
        outputs, factors = [], []
        for layer in (self.layers[j] for j in which):
            names = _names(layer)
            outputs.append(Output(layer.get_base_layer(), tuple(float(layer.scaling[name]) for name in names)))
            factors += [w for name in names for w in (layer.lora_A[name].weight, layer.lora_B[name].weight)]
        flat = _LoraLinears.apply(x.reshape(-1, x.shape[-1]), origin_of(x), outputs, *factors)
        return {j: out.view(*x.shape[:-1], -1) for j, out in zip(which, flat, strict=True)}


def _names(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _covered(layer: Any, x: Tensor) -> bool:
    """Whether the function computes what PEFT would: frozen weights, no dropout, and precisions that go together."""
    base = layer.get_base_layer()
    if kept(base).requires_grad or torch.is_autocast_enabled(x.device.type):
        return False
    if x.dtype != (base.compute_dtype if is_4bit(base) else dtype_of(base)):
        return False
    for name in _names(layer):
        if name in layer.lora_variant:  # such as DoRA
            return False
        if layer.training and not isinstance(layer.lora_dropout[name], nn.Identity):
            return False
        own = layer.lora_A[name].weight.dtype
        if own != x.dtype and not (own == torch.float32 and x.dtype in (torch.bfloat16, torch.float16)):
            return False
    return True


@torch.no_grad()
def read_together(model: PreTrainedModel) -> list[list[str]]:
    """Names of the linear layers that run when the model reads text, those of one module that read the same tensor in
    one list: seen in a forward of the bare base, once."""
    if hasattr(model, "reads_together"):
        return cast(list[list[str]], model.reads_together)
    seen: list[tuple[str, Tensor]] = []

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...], out: object) -> None:
        if args and isinstance(out, Tensor) and _computes_linear(module, args[0], out):
            seen.append((name, args[0]))

    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) or is_conv1d(m)}
    hooks = [module.register_forward_hook(partial(note, name)) for name, module in linears.items()]
    try:
        with native_attention(model):
            read(model, torch.tensor([[0, 1]], device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    groups: list[list[str]] = []
    last: tuple[str, Tensor | None] = ("", None)
    for name, x in seen:
        parent = name.rpartition(".")[0]
        if last[0] == parent and last[1] is x:
            groups[-1].append(name)
        else:
            groups.append([name])
        last = (parent, x)
    model.reads_together = groups  # type: ignore[assignment]
    return groups


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, whose matrix is transposed."""
    return type(module).__name__ == "Conv1D"


def _computes_linear(module: Any, x: Tensor, out: Tensor) -> bool:
    """Whether a layer does no more than x W^T + b; those that have a forward of their own, as routers do, are tried."""
    kind = type(module)
    plain = kind.forward in (nn.Linear.forward, NarrowLinear.forward)
    if plain or is_conv1d(module) or kind.__module__.startswith("bitsandbytes"):
        return True
    return torch.allclose(out, nn.functional.linear(x, module.weight, module.bias))


def fuse(model: nn.Module, together: Sequence[Sequence[str]]) -> None:
    """Give every LoRA layer whose base is a plain linear layer, or one in 4 or 16 bits, the fused forward. Others keep
    PEFT's."""
    for names in together:
        layers = [layer for layer in map(model.get_submodule, names) if _fusable(layer)]
        group = _Together(layers)
        for i, layer in enumerate(layers):
            layer.forward = _bound(group, i)


def _fusable(layer: Any) -> bool:
    if not isinstance(layer, LoraLayer) or isinstance(layer, AdaLoraLayer):
        return False
    base = layer.get_base_layer()
    return type(base) is nn.Linear or isinstance(base, NarrowLinear) or is_4bit(base)


def _bound(group: _Together, i: int) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: group(i, x, *args, **kwargs)
