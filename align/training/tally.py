"""What losses measure, as sums and counts: added up over micro-batches, ranks and steps, and divided when it is looked
at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from align.training.processes import rank_and_world

Number = float | Tensor
Tally = dict[str, list[Number]]
"""Name -> [sum, count]."""


def add(tally: Tally, measured: Mapping[str, Sequence[Number]], weight: int = 1) -> None:
    """Add what was measured, name -> (sum, count), to `tally`."""
    for name, (value, count) in measured.items():
        entry = tally.setdefault(name, [0.0, 0.0])
        entry[0], entry[1] = entry[0] + weight * value, entry[1] + weight * count


def over_ranks(measured: Mapping[str, Sequence[Number]], device: torch.device) -> dict[str, list[float]]:
    """The sums and counts of all ranks, added up in fp64; every rank measured under the same names."""
    names = sorted(measured)
    table = torch.tensor([[float(x) for x in measured[n]] for n in names], dtype=torch.float64, device=device)
    if rank_and_world()[1] > 1:
        torch.distributed.all_reduce(table)
    return dict(zip(names, table.tolist(), strict=True))


def together(tallies: Iterable[Mapping[str, Sequence[Number]]]) -> Tally:
    """Several added up."""
    found: Tally = {}
    for tally in tallies:
        add(found, tally)
    return found


def means(tally: Mapping[str, Sequence[Number]]) -> dict[str, float]:
    """Sum over count, where anything was counted."""
    return {name: float(value / count) for name, (value, count) in sorted(tally.items()) if count}
