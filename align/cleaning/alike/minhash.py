"""Near duplicates: MinHash with bands, then the Jaccard index of the shingles themselves.

Broder 1997 ("On the resemblance and containment of documents"); bands as in Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", section 3.4. With b bands of r rows two texts of similarity s are looked at with probability
1 - (1 - s^r)^b: 20 bands of 6 give 0.998 at 0.8. Every pair that is looked at is verified, so that nothing is called a
duplicate by an estimate.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.cleaning.alike.shingles import Shelf, Vocabulary, jaccard, mixed, odd_numbers, sets_of, shingles

if TYPE_CHECKING:
    from align.cleaning.alike.shingles import Edges, Hashes, Signatures

WORDS = 5
"""Words in a shingle."""
BANDS, IN_BAND = 20, 6
BLOCK = 2048
"""Texts whose signatures are computed at once."""
MARGIN = 0.2
"""How far an estimate by a signature of 120 hashes may be from the index: more than 5 standard deviations at 0.8."""


class Near:
    """Rows in their order, each a few parts; says of each which earlier one that is kept it nearly repeats."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.vocabulary = Vocabulary()
        self.parts = Shelf()
        """Shingles of each part of each row, sorted and each once."""
        self.waiting: list[tuple[Hashes, ...]] = []
        """Those of rows that have no signature yet."""
        self.signatures: list[Signatures] = []
        """In blocks of rows."""
        self.numbers: dict[bytes, int] = {}
        """Groups, by their hash, in the order in which they came."""
        self.groups = array("q")

    def add(self, parts: Sequence[str], group: object) -> None:
        """A row by its parts; only rows of one group (with the same keys, of the same verdict) can be duplicates."""
        import numpy as np

        found = tuple(np.unique(self._shingles(part)) for part in parts)
        self.parts.append(found)
        self.waiting.append(found)
        key = hashlib.sha256(repr(group).encode("utf-8", "surrogatepass")).digest()
        self.groups.append(self.numbers.setdefault(key, len(self.numbers)))
        if len(self.waiting) == BLOCK:
            self._sign()

    def _sign(self) -> None:
        """The signatures of the rows that wait for them."""
        salts = odd_numbers(max(map(len, self.waiting), default=0), seed=5)
        self.signatures.append(signatures_of(*sets_of([joined(parts, salts) for parts in self.waiting])))
        self.waiting = []

    def _shingles(self, part: str) -> Hashes:
        """Of a text too short to have one: the text itself, in which every sign counts."""
        import numpy as np

        ids = self.vocabulary.ids(part)
        if len(ids) < WORDS:
            ids = np.array([self.vocabulary[" ".join(part.casefold().split())]], np.uint64)
        return shingles(ids, WORDS)

    def duplicates(self) -> dict[int, tuple[int, float]]:
        """Number of a row that goes -> (number of the row that stays, the least similarity of their parts)."""
        import numpy as np

        self._sign()
        signatures = np.concatenate(self.signatures)
        keys = band_keys(signatures)
        empty = (signatures == np.iinfo(np.uint32).max).all(1)
        found: dict[int, tuple[int, float]] = {}
        buckets: dict[tuple[int, int, int], list[int]] = {}
        for row, bands in enumerate(keys):
            if empty[row]:
                continue
            mine = [(self.groups[row], band, key) for band, key in bands]
            near = sorted({other for key in mine for other in buckets.get(key, ())})
            match = self._match(row, self._likely(row, near, signatures))
            if match:
                found[row] = match
                continue
            for key in mine:
                buckets.setdefault(key, []).append(row)
        return found

    def _likely(self, row: int, others: list[int], signatures: Signatures) -> list[int]:
        """Those rows whose signatures do not rule them out."""
        if not others:
            return []
        agree = (signatures[others] == signatures[row]).mean(1)
        return [other for other, share in zip(others, agree, strict=True) if share >= self.threshold - MARGIN]

    def _match(self, row: int, others: list[int]) -> tuple[int, float] | None:
        """The first of these rows all of whose parts are similar enough."""
        mine = self.parts[row] if others else ()
        for other in others:
            theirs = self.parts[other]
            if len(theirs) != len(mine):
                continue
            least = min(jaccard(a, b) for a, b in zip(theirs, mine, strict=True))
            if least >= self.threshold:
                return other, least
        return None


def joined(parts: tuple[Hashes, ...], salts: Hashes) -> Hashes:
    """The shingles of all parts of a row; a shingle of one part is another than of the next. Where each part is similar
    at some index, so is the whole, whose index lies between theirs."""
    import numpy as np

    return np.concatenate([mixed(part ^ salt) for part, salt in zip(parts, salts, strict=False)] or [salts[:0]])


def signatures_of(whole: Hashes, edges: Edges) -> Signatures:
    """The least of each of 120 hashes over the shingles of each row: (rows, 120). A row without any has the largest
    number everywhere."""
    import numpy as np

    factors = odd_numbers(BANDS * IN_BAND, seed=7)
    out = np.full((len(edges) - 1, len(factors)), np.iinfo(np.uint32).max, np.uint32)
    for start in range(0, len(out), BLOCK):
        ends = edges[start : start + BLOCK + 1]
        filled = np.flatnonzero(np.diff(ends))
        if len(filled) == 0:
            continue
        block, begins = whole[ends[0] : ends[-1]], ends[filled] - ends[0]
        for i, factor in enumerate(factors):
            hashed = ((block * factor) >> np.uint64(32)).astype(np.uint32)
            out[start + filled, i] = np.minimum.reduceat(hashed, begins)
    return out


def band_keys(signatures: Signatures) -> list[list[tuple[int, int]]]:
    """For each row the (band, key) that another row has too; what no other has leads nowhere."""
    import numpy as np

    out: list[list[tuple[int, int]]] = [[] for _ in signatures]
    factors = odd_numbers(IN_BAND, seed=11)
    for band in range(BANDS):
        of_band = signatures[:, band * IN_BAND : (band + 1) * IN_BAND].astype(np.uint64)
        keys = mixed((of_band * factors).sum(1))
        _, which, counts = np.unique(keys, return_inverse=True, return_counts=True)
        for row in np.flatnonzero(counts[which] > 1):
            out[row].append((band, int(which[row])))
    return out
