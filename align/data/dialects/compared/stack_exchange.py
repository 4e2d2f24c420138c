"""Pairs of StackExchange as StackLLaMA uses them (Beeching et al. 2023): j is the better answer.

{"question": "How do I boil an egg?", "response_j": "In water.", "response_k": "Why?"}
"""

from __future__ import annotations

from align.data.dialects.common import pair, without
from align.data.records import Row

ANSWERS = ("response_j", "response_k")


def as_ours(where: str, row: Row) -> Row:
    """The pair."""
    if not row.keys() >= {"question", *ANSWERS}:
        return row
    return pair(without(row, ANSWERS), row[ANSWERS[0]], row[ANSWERS[1]], True)
