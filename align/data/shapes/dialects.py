"""Dialects: rows in which others write, under keys of their own, what a row of ours says."""

from __future__ import annotations

from collections.abc import Callable

from align.data.records import Row
from align.data.shapes import openai_pairs

Dialect = Callable[[str, Row], Row]
"""(where, row) -> a row of ours; any other row as it is. Raises: InputError for what cannot be said in ours."""

DIALECTS: tuple[Dialect, ...] = (openai_pairs.as_ours,)


def as_ours(where: str, row: Row) -> Row:
    """The row as its dialect says it in keys of ours."""
    for dialect in DIALECTS:
        row = dialect(where, row)
    return row
