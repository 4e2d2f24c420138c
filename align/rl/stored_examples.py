"""What a checkpoint keeps of rollouts: examples as tensors, as it is read with `weights_only=True`, and back without a
difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import TypedDict

import numpy as np
import torch

from align.data.examples import Example
from align.ground.json import Json


class StoredColumn(TypedDict):
    """Values of all sequences one after the other, and how many each has."""

    lengths: list[int]
    values: torch.Tensor


class StoredExamples(TypedDict):
    """Examples; `ids` and `supervised` hold all sequences one after the other."""

    shared: list[int]
    margins: list[float]
    branches: list[int]
    lengths: list[int]
    ids: torch.Tensor
    supervised: torch.Tensor
    columns: dict[str, StoredColumn]


COUNTS = ("taken", "done", "left_early", "place", "asked", "resampled")
"""The counts of `Rollouts` that are saved."""


class RolloutsState(TypedDict):
    """What a checkpoint keeps of `Rollouts`; the examples of a rollout that is through are left out."""

    counts: dict[str, int]
    kl_coef: float
    moments: dict[str, float]
    measured: dict[str, float]
    examples: StoredExamples
    dropped: list[bool]
    begun: tuple[dict[str, float], float] | None
    moving: list[Mapping[str, object]]
    observers: list[Json]


def dump(examples: Sequence[Example]) -> StoredExamples:
    """Ids, what counts, and columns, one sequence after the other."""
    rows = [row for e in examples for row in zip(e.sequences, e.supervised, strict=True)]
    names = list(examples[0].columns) if examples else []
    ids = list(chain.from_iterable(ids for ids, _ in rows))
    supervised = list(chain.from_iterable(counts for _, counts in rows))
    return {
        "shared": [e.shared for e in examples],
        "margins": [e.margin for e in examples],
        "branches": [len(e.sequences) for e in examples],
        "lengths": [len(ids) for ids, _ in rows],
        "ids": torch.tensor(ids, dtype=torch.int64),
        "supervised": torch.tensor(supervised, dtype=torch.bool),
        "columns": {name: _column(examples, name) for name in names},
    }


def _column(examples: Sequence[Example], name: str) -> StoredColumn:
    values = [np.asarray(v, dtype=np.float32) for e in examples for v in e.columns[name]]
    return {"lengths": [len(v) for v in values], "values": torch.from_numpy(np.concatenate(values))}


def restore(stored: StoredExamples) -> list[Example]:
    """What was dumped."""
    all_ids, all_supervised = stored["ids"].tolist(), stored["supervised"].tolist()
    sequences = _slices(stored["lengths"])
    ids, supervised = [all_ids[s] for s in sequences], [all_supervised[s] for s in sequences]
    columns = {}
    for name, column in stored["columns"].items():
        values = column["values"].numpy()
        columns[name] = [values[s] for s in _slices(column["lengths"])]
    ends = list(accumulate(stored["branches"], initial=0))
    return [
        Example(
            tuple(ids[a:b]),
            tuple(supervised[a:b]),
            shared,
            {name: tuple(values[a:b]) for name, values in columns.items()},
            margin,
        )
        for (a, b), shared, margin in zip(pairwise(ends), stored["shared"], stored["margins"], strict=True)
    ]


def _slices(lengths: Sequence[int]) -> list[slice]:
    """Where each of several sequences is that lie one after the other."""
    return [slice(a, b) for a, b in pairwise(accumulate(lengths, initial=0))]
