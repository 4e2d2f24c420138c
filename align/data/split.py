"""Holding out: a share of the prompts, by their hash, or prompts that are named."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from align.data.filed import FiledList
from align.data.records import Labelled, Preference, R, Ranking, Record, Stepwise, Text

if TYPE_CHECKING:
    from numpy import bool_, uint64
    from numpy.typing import NDArray

BITS = 48
"""Of a hash, 12 hexadecimal digits."""
LIMIT = 1000
"""Prompts that are held out at most, each with all its records."""


def split_by_prompt(records: Sequence[R], fraction: float, limit: int = LIMIT) -> tuple[list[R], list[R]]:
    """(to train on, held out): about `fraction` of the prompts, at most `limit` of them, chosen by their hash.

    A prompt is what stands before the assistant's first word, or a whole text, so that all records of one prompt, and
    all stages of one dialogue, are on one side. The hash depends on nothing else, so that however rows are ordered a
    prompt held out of one data set is held out of the next one too, with two exceptions: beyond `limit`, and where both
    sides get at least one, as from two prompts on they do unless `fraction` is 0: the one prompt that a small set holds
    out may be trained on in a larger one. `leave_out` has neither.
    """
    import numpy as np

    numbers = _numbers(records)
    ranked = np.unique(numbers)
    chosen = int((ranked / 2**BITS < fraction).sum())
    chosen = min(max(chosen, 1), len(ranked) - 1, limit) if fraction > 0 and len(ranked) else 0
    return _apart(records, np.isin(numbers, ranked[:chosen]))


def leave_out(records: Sequence[R], held: float | Collection[str]) -> tuple[list[R], list[R]]:
    """(the others, held out): records of the prompts whose place is below a share, or whose `opening` is among those
    given; the same ones of every data set."""
    import numpy as np

    numbers = _numbers(records)
    if isinstance(held, float):
        return _apart(records, numbers / 2**BITS < held)
    return _apart(records, np.isin(numbers, np.array([int(opening, 16) for opening in held], np.uint64)))


def _apart(records: Sequence[R], out: NDArray[bool_]) -> tuple[list[R], list[R]]:
    return at(records, (~out).nonzero()[0].tolist()), at(records, out.nonzero()[0].tolist())


def at(records: Sequence[R], places: Sequence[int]) -> list[R]:
    """The records at some places."""
    if isinstance(records, FiledList) and records.is_filed:
        return records.pick(places)
    return [records[i] for i in places]


def at_most(records: Sequence[R], limit: int = LIMIT) -> list[R]:
    """The records of `limit` prompts, those of the lowest hash."""
    import numpy as np

    numbers = _numbers(records)
    return _apart(records, np.isin(numbers, np.unique(numbers)[:limit]))[1]


def opening(record: Record) -> str:
    """12 hexadecimal digits of the hash of a record's opening, on which alone they depend."""
    return f"{hashed(record):012x}"


def openings(records: Sequence[Record]) -> Iterator[str]:
    """`opening` of each record; of those in a file without reading it."""
    return (f"{number:012x}" for number in _numbers(records).tolist())


def _numbers(records: Sequence[Record]) -> NDArray[uint64]:
    import numpy as np

    marks = records.marks if isinstance(records, FiledList) else None
    return np.array([hashed(record) for record in records] if marks is None else marks, np.uint64)


def hashed(record: Record) -> int:
    """`opening`, as a number."""
    if isinstance(record, Text):
        first: object = record.text
    else:
        messages = record.prompt if isinstance(record, Preference | Ranking | Labelled | Stepwise) else record.messages
        first = [(m.role, m.content) for m in itertools.takewhile(lambda m: m.role != "assistant", messages)]
    return int.from_bytes(hashlib.sha256(json.dumps(first).encode()).digest()[: BITS // 8], "big")


def place(opening: str) -> float:
    """A number in [0, 1), evenly spread over prompts."""
    return int(opening, 16) / 2**BITS
