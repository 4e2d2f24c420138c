"""Sampled answers on their way to a rollout: with their scores, from all ranks, and as examples with columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from align.data.examples import Example
from align.sampling.rollout import Answer
from align.training.processes import everyones

T = TypeVar("T")


@dataclass(frozen=True)
class ScoredGroup:
    """Which prompt it is and its token ids, the answers that were drawn, and each reward's scores of them, (n,)."""

    which: int
    prompt: Sequence[int]
    answers: list[Answer]
    scores: list[np.ndarray]

    @property
    def ids(self) -> list[list[int]]:
        return [answer.ids for answer in self.answers]


@dataclass(frozen=True)
class DrawnGroup:
    """A group, and the example that it makes."""

    group: ScoredGroup
    example: Example


def gather(rows: list[T]) -> list[T]:
    """Every rank's rows, in the order of the ranks."""
    return [row for part in everyones(rows) for row in part]


def attach(examples: list[Example], columns: Mapping[str, Sequence[np.ndarray]], n: int) -> list[Example]:
    """The examples, of `n` samples each, with columns that hold one array (its tokens,) per sample."""
    # a branch's last position predicts nothing, hence the zero at the end
    padded = {name: [np.append(values, 0.0).astype(np.float32) for values in its] for name, its in columns.items()}
    out = []
    for i, example in enumerate(examples):
        own = {name: tuple(column[i * n : (i + 1) * n]) for name, column in padded.items()}
        out.append(replace(example, columns=own))
    return out
