"""A module's own weights, whole for a moment. Of a module that is in no shards they always are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule

_open: Counter[int] = Counter()
"""How many blocks hold a module whole, by its id."""


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """`module`'s own weights are whole inside; all processes enter together, or are inside another such block."""
    if not isinstance(module, FSDPModule):
        yield
        return
    if not _open[id(module)]:
        module.unshard()
    _open[id(module)] += 1
    try:
        yield
    finally:
        _open[id(module)] -= 1
        if not _open[id(module)]:
            module.reshard()
