"""Ranks: the processes of one run, as torchrun starts them."""

from __future__ import annotations

import atexit
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState

from align.ground.errors import AlignError
from align.ground.ranks import world
from align.models.process import device


def rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


PATIENCE = timedelta(hours=12)
"""How long ranks wait for each other: the first may be copying a large model, or waiting for another process that has
asked the same."""


def from_first(text: str = "") -> str:
    """What the first of torchrun's processes says, on each of them; they meet here for the first time.

    Raises: AlignError where it has ended.
    """
    said = [text]
    if world() > 1:
        with meeting():
            if not torch.distributed.is_initialized():
                # as Trainer makes the group, which it then finds
                state = PartialState(cpu=device().type == "cpu", timeout=PATIENCE)
                # its threads, still there when a process ends, can abort it
                atexit.register(state.destroy_process_group)
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
        why = "another of torchrun's processes has ended; see its message. The same command goes on from what was done."
        raise AlignError(why) from error


def barrier() -> None:
    """Wait for all ranks; nothing to do for one process."""
    if rank_and_world()[1] > 1:
        torch.distributed.barrier()


def agree(*flags: bool) -> list[bool]:
    """What any rank says holds for all: signals and clocks differ between them."""
    if rank_and_world()[1] == 1:
        return list(flags)
    said = torch.tensor(flags, dtype=torch.int32, device=device())
    torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in said.tolist()]
