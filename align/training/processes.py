"""Ranks: the processes of one run, as torchrun starts them.

Gradients of what lies on a frozen base are added over them once an optimizer step, after its last micro-batch. Nothing
stands between the trainer and the module then, so that a base may be in shards and a loss may come in parts.
"""

from __future__ import annotations

import atexit
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from align.ground.errors import AlignError
from align.ground.leaving import at_once
from align.ground.ranks import GONE, local_rank, on_this_machine, rank, world
from align.models.process import device
from align.parallel import late
from align.parallel.group import leave


def rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


_cut = [False]


@contextmanager
def rows_cut() -> Iterator[None]:
    """Inside, every process works on a part of each row, and all have all rows."""
    _cut[0] = True
    try:
        yield
    finally:
        _cut[0] = False


def share() -> tuple[int, int]:
    """Which share of the rows of a step this process takes, of how many."""
    return (0, 1) if _cut[0] else rank_and_world()


T = TypeVar("T")
PATIENCE = timedelta(hours=12)
"""How long ranks wait for each other: the first may be copying a large model, or waiting for another process that has
asked the same."""


def from_first(said_here: T) -> T:
    """What the first of torchrun's processes says, on each of them; they meet here for the first time.

    Raises: AlignError where it has ended.
    """
    said = [said_here]
    if world() > 1:
        meets_first = not torch.distributed.is_initialized()
        with meeting(), at_once() if meets_first else nullcontext():
            if meets_first:
                atexit.register(leave)  # before there is a group: a signal may come while it is made
                late.watch(PATIENCE)
                PartialState(cpu=device().type == "cpu", timeout=PATIENCE)  # as Trainer makes it, which then finds it
            with late.patiently() if rank() else nullcontext():
                torch.distributed.broadcast_object_list(said, src=0, device=device())
    return said[0]


@contextmanager
def meeting() -> Iterator[None]:
    """Ranks exchange something in this block. Raises: AlignError where one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        if rank_and_world()[1] == 1 or not re.search(
            r"[Cc]onnection (closed|reset|was)|gloo|NCCL|Broken pipe", str(error)
        ):
            raise
        raise AlignError(f"{GONE}; see its message. The same command goes on from what was done.") from error


def barrier() -> None:
    """Wait for all ranks; nothing to do for one process."""
    if rank_and_world()[1] > 1:
        torch.distributed.barrier()


def turns() -> Iterator[bool]:
    """Rounds of all ranks, in one of which it is this one's turn: no two on one machine have theirs together."""
    for turn in range(on_this_machine()):
        yield turn == (local_rank() or 0)
        with late.patiently():
            barrier()


def everyones(said: T) -> list[T]:
    """What each rank says, in their order."""
    world = rank_and_world()[1]
    if world == 1:
        return [said]
    found = [said] * world
    torch.distributed.all_gather_object(found, said)
    return found


def agree(*flags: bool) -> list[bool]:
    """What any rank says holds for all: signals and clocks differ between them."""
    if rank_and_world()[1] == 1:
        return list(flags)
    said = torch.tensor(flags, dtype=torch.int32, device=device())
    torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in said.tolist()]


@torch.no_grad()
def share_first(parameters: Sequence[Tensor]) -> None:
    """All processes begin with what the first one has."""
    if rank_and_world()[1] > 1:
        for parameter in parameters:
            torch.distributed.broadcast(parameter.data, src=0)


@torch.no_grad()
def average_gradients(parameters: Sequence[Tensor]) -> None:
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
