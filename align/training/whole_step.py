"""A whole optimizer step before it is taken: what couples its records is measured over all of them, micro-batches and
ranks, and travels as a column into each. Then a loss that reads it is a sum over micro-batches like any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from align.data.examples import Example
from align.models.roles import Roles
from align.packed.pack import Batch, pack
from align.training.processes import rank_and_world
from align.training.steps import dealt

Prepare = Callable[[list[Example], int], list[Example]]
"""Fills the examples of a step, just before it is taken, with what they are told of each other; it is told how many
steps were taken before."""


class Remembering(Protocol):
    """What is carried from step to step beside the weights: tensors and plain containers, which checkpoints keep."""

    def state_dict(self) -> Mapping[str, object]: ...
    def load_state_dict(self, state: Mapping[str, object]) -> None: ...


class Several:
    """What several things carry, by their names."""

    def __init__(self, each: Mapping[str, Remembering]):
        self.each = each

    def state_dict(self) -> dict[str, object]:
        return {name: one.state_dict() for name, one in self.each.items()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        for name, one in self.each.items():
            one.load_state_dict(cast(Mapping[str, object], state[name]))


@torch.no_grad()
def of_sequences(
    roles: Roles, examples: Sequence[Example], budget: int, measure: Callable[[Roles, Batch], Tensor]
) -> Tensor:
    """What `measure` finds of every sequence of a step, (S) on the CPU in fp64: each rank looks at the micro-batches
    that it will train on, and all know all."""
    ends = np.cumsum([len(e.sequences) for e in examples])
    found = torch.zeros(int(ends[-1]), dtype=torch.float64, device=roles.base.device)
    mine, each, _ = dealt(examples, budget)
    for items in mine:
        batch = pack([examples[i] for i in items]).to(roles.base.device)
        places = [int(ends[i]) - n for i in items for n in range(len(examples[i].sequences), 0, -1)]
        found[places] = measure(roles, batch).double()
    if roles.shards is not None:  # whose forwards are those of all processes
        for _ in range(each - len(mine)):
            measure(roles, pack([examples[0]]).to(roles.base.device))
    if rank_and_world()[1] > 1:
        torch.distributed.all_reduce(found)
    return found.cpu()


def with_value(examples: Sequence[Example], name: str, values: Tensor) -> list[Example]:
    """The examples with a column that is the same at all tokens of a sequence; `values (S)`."""
    out, each = [], iter(values.tolist())
    for example in examples:
        column = tuple(np.full(len(s) - example.prefix, next(each), dtype=np.float32) for s in example.sequences)
        out.append(replace(example, columns={**example.columns, name: column}))
    return out
