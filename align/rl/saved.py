"""Examples as tensors, for checkpoints that are read with `weights_only=True`, and back without a difference."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import torch

from align.data.examples import Example


def dump(examples: Sequence[Example]) -> dict[str, Any]:
    """Ids, what counts, and columns, one sequence after the other."""
    rows = [row for e in examples for row in zip(e.sequences, e.supervised, strict=True)]
    names = list(examples[0].columns) if examples else []
    return {
        "shared": [e.shared for e in examples],
        "margins": [e.margin for e in examples],
        "branches": [len(e.sequences) for e in examples],
        "lengths": [len(ids) for ids, _ in rows],
        "ids": torch.tensor(list(chain.from_iterable(ids for ids, _ in rows)), dtype=torch.int64),
        "supervised": torch.tensor(list(chain.from_iterable(counts for _, counts in rows)), dtype=torch.bool),
        "columns": {name: _column(examples, name) for name in names},
    }


def _column(examples: Sequence[Example], name: str) -> dict[str, Any]:
    values = [np.asarray(v, dtype=np.float32) for e in examples for v in e.columns[name]]
    return {"lengths": [len(v) for v in values], "values": torch.from_numpy(np.concatenate(values))}


def restore(saved: dict[str, Any]) -> list[Example]:
    """What was dumped."""
    ids, supervised = (_cut(saved[name].tolist(), saved["lengths"]) for name in ("ids", "supervised"))
    columns = {name: _cut(column["values"].numpy(), column["lengths"]) for name, column in saved["columns"].items()}
    ends = list(accumulate(saved["branches"], initial=0))
    return [
        Example(
            tuple(ids[a:b]),
            tuple(supervised[a:b]),
            shared,
            {name: tuple(values[a:b]) for name, values in columns.items()},
            margin,
        )
        for (a, b), shared, margin in zip(pairwise(ends), saved["shared"], saved["margins"], strict=True)
    ]


def _cut(values: Any, lengths: Sequence[int]) -> list[Any]:
    return [values[a:b] for a, b in pairwise(accumulate(lengths, initial=0))]
