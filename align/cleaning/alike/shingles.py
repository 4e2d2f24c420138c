"""Shingles: the runs of words of a text as 64-bit hashes, computed for many texts at once.

Ids of words are those of `Vocabulary`; a shingle's hash is a sum of its ids times odd random numbers modulo 2^64,
mixed. Two different shingles have one hash with a probability of about 2^-64.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from align.cleaning.words import plain_words
from align.data.filed import Spool

if TYPE_CHECKING:
    from numpy import int64, uint32, uint64
    from numpy.typing import NDArray

    Hashes = NDArray[uint64]
    Signatures = NDArray[uint32]
    Edges = NDArray[int64]

SEED = 18


class Vocabulary(dict[str, int]):
    """Ids of words, in the order in which they come."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self) + 1
        return number

    def ids(self, text: str) -> Hashes:
        import numpy as np

        return np.array([self[word] for word in plain_words(text)], np.uint64)


class Shelf:
    """Sets of shingles of many rows, on disk."""

    def __init__(self) -> None:
        self.sets = Spool()
        self.rows = array("q", [0])
        """The first set of each row, and the one after the last."""

    def append(self, sets: Sequence[Hashes]) -> None:
        for one in sets:
            self.sets.append(one.tobytes())
        self.rows.append(self.rows[-1] + len(sets))

    def __getitem__(self, row: int) -> tuple[Hashes, ...]:
        import numpy as np

        return tuple(np.frombuffer(self.sets[i], np.uint64) for i in range(*self.rows[row : row + 2]))


def mixed(numbers: Hashes) -> Hashes:
    """Numbers scattered over 64 bits (the finaliser of MurmurHash3, Appleby)."""
    import numpy as np

    out = numbers ^ (numbers >> np.uint64(33))
    out *= np.uint64(0xFF51AFD7ED558CCD)
    out ^= out >> np.uint64(33)
    out *= np.uint64(0xC4CEB9FE1A85EC53)
    return out ^ (out >> np.uint64(33))


@cache
def odd_numbers(n: int, seed: int = SEED) -> Hashes:
    """Not to be changed: whoever asks gets the same ones."""
    import numpy as np

    return np.random.Generator(np.random.PCG64(seed)).integers(1, 2**63, n, np.uint64) * np.uint64(2) + np.uint64(1)


def shingles(ids: Hashes, n: int) -> Hashes:
    """Hashes of all runs of n words; of fewer words, of all of them together; none where there is no word."""
    import numpy as np

    factors = odd_numbers(n)
    if len(ids) == 0:
        return ids
    if len(ids) < n:
        return mixed(np.array([(ids * factors[: len(ids)]).sum() + np.uint64(len(ids))], np.uint64))
    total = ids[: len(ids) - n + 1] * factors[0]
    for i in range(1, n):
        total = total + ids[i : len(ids) - n + 1 + i] * factors[i]
    return mixed(total)


def sets_of(parts: Sequence[Hashes]) -> tuple[Hashes, Edges]:
    """(shingles of all texts, each text's sorted and each once, where each text's begin and the last one's end)."""
    import numpy as np

    unique = [np.unique(part) for part in parts]
    edges = np.cumsum([0, *map(len, unique)])
    return np.concatenate(unique) if unique else np.zeros(0, np.uint64), edges


def jaccard(one: Hashes, other: Hashes) -> float:
    """|A ∩ B| / |A ∪ B| of two sets, each sorted and without repeats; 1 for two that are empty."""
    import numpy as np

    both = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - both
    return both / union if union else 1.0
