"""Pairs of the Stanford Human Preferences (Ethayarajh et al. 2022).

{"history": "How do I boil an egg?", "human_ref_A": "In water.", "human_ref_B": "Why?", "labels": 1}
"""

from __future__ import annotations

from align.data.dialects.common import pair, verdict, without
from align.data.records import Row

ANSWERS = ("human_ref_A", "human_ref_B")


def as_ours(where: str, row: Row) -> Row:
    """The pair; label 1 prefers A, 0 prefers B."""
    if not row.keys() >= {"history", *ANSWERS, "labels"}:
        return row
    others = {"prompt": row["history"], **without(row, ("history", *ANSWERS, "labels"))}
    return pair(others, row[ANSWERS[0]], row[ANSWERS[1]], verdict(where, row, "labels", {1: True, 0: False}))
