"""Gradients of what lies on a frozen base, added over the processes of a run: once an optimizer step, after its last
micro-batch. Nothing stands between the trainer and the module then, so that a base may be in shards and a loss may come
in parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from align.training.processes import rank_and_world


@torch.no_grad()
def share_first(parameters: Sequence[Tensor]) -> None:
    """All processes begin with what the first one has."""
    if rank_and_world()[1] > 1:
        for parameter in parameters:
            torch.distributed.broadcast(parameter.data, src=0)


@torch.no_grad()
def average(parameters: Sequence[Tensor]) -> None:
    """Means of gradients over all processes, which losses times their number make sums, in one flat tensor a dtype.
    What has a gradient on some processes alone counts as 0 on the others; what has none anywhere stays so."""
    world = rank_and_world()[1]
    if world == 1 or not parameters:
        return
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    torch.distributed.all_reduce(has, torch.distributed.ReduceOp.MAX)
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter, anywhere in zip(parameters, has.tolist(), strict=True):
        if anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = _flatten_dense_tensors(gradients).div_(world)  # (their numbers together,); as DDP, divided first
        torch.distributed.all_reduce(flat)
        for gradient, mean in zip(gradients, _unflatten_dense_tensors(flat, gradients), strict=True):
            gradient.copy_(mean)
