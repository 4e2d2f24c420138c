"""What losses measure, as sums and counts: added up over micro-batches, ranks and steps, and divided when it is looked
at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from align.training.processes import rank_and_world


def add(sums: dict[str, list[Any]], measured: Mapping[str, Sequence[Any]], weight: int = 1) -> None:
    """Add what was measured, name -> (sum, count), to `sums`."""
    for name, (value, count) in measured.items():
        entry = sums.setdefault(name, [0.0, 0.0])
        entry[0], entry[1] = entry[0] + weight * value, entry[1] + weight * count


def over_ranks(measured: Mapping[str, Sequence[Any]], device: torch.device) -> dict[str, list[float]]:
    """The sums and counts of all ranks, added up in fp64; every rank measured under the same names."""
    names = sorted(measured)
    table = torch.tensor([[float(x) for x in measured[n]] for n in names], dtype=torch.float64, device=device)
    if rank_and_world()[1] > 1:
        torch.distributed.all_reduce(table)
    return dict(zip(names, table.tolist(), strict=True))


def means(sums: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Sum over count, where anything was counted."""
    return {name: value / count for name, (value, count) in sorted(sums.items()) if count}
