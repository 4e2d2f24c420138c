"""Examples: what rendering makes of records and packing takes, token ids and which of them count."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any


@dataclass(frozen=True)
class Example:
    """Token ids of one record, and which of them count.

    `sequences[i]` is a whole text (prompt and completion); the first `shared` tokens of all of them are equal.
    `supervised[i][t]` says whether token t is a target that counts. `columns[name][i]` holds one number per token of
    sequence i's branch, aligned with the position that *predicts* (as log-probs are), and travels into `Batch.columns`.
    `trunk` is what enters the first layer that trains, where that is kept: (prefix, D), which examples of one prompt
    share, and (tokens - prefix, D), in packed order.
    """

    sequences: tuple[Sequence[int], ...]
    supervised: tuple[Sequence[bool], ...]
    shared: int = 0
    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    margin: float = 0.0
    label: bool | None = None
    """Whether its answer is desirable, where the record says so."""
    labels: tuple[bool, ...] = ()
    """Whether what ends with each target that counts is right, where the record has steps."""
    trunk: Any = field(default=None, compare=False, repr=False)
    opening: str = field(default="", compare=False, repr=False)
    """`align.data.split.opening` of its record."""

    @property
    def prefix(self) -> int:
        """Tokens before the branches: all shared ones but the last."""
        return max(self.shared - 1, 0)

    @cached_property
    def head(self) -> tuple[int, ...]:
        """The tokens before the branches; examples with the same ones share them in a packed row."""
        return tuple(self.sequences[0][: self.prefix])

    @property
    def tokens(self) -> int:
        """Tokens this example takes in a packed row of its own."""
        return self.prefix + sum(len(s) - self.prefix for s in self.sequences)


def in_pairs(examples: Iterable[Example]) -> list[Example]:
    """Every two sequences of each example, the earlier one first, as examples of their own, without columns."""
    out = []
    for e in examples:
        for i, j in combinations(range(len(e.sequences)), 2):
            both = ((e.sequences[i], e.sequences[j]), (e.supervised[i], e.supervised[j]))
            out.append(Example(*both, e.shared, opening=e.opening))
    return out


def digest(examples: Iterable[Example]) -> str:
    """sha256 over the token ids of examples, what they share and what counts in them."""
    seen = hashlib.sha256()
    for example in examples:
        seen.update(array("q", [example.shared, len(example.sequences), *map(len, example.sequences)]).tobytes())
        for sequence, supervised in zip(example.sequences, example.supervised, strict=True):
            seen.update(array("q", sequence).tobytes() + bytes(supervised))
    return seen.hexdigest()
