"""Pairs of PKU-SafeRLHF (Ji et al. 2024, arXiv 2406.15513); the more helpful answer is the better one.

{"prompt": "Hi", "response_0": "Hello!", "response_1": "What?", "better_response_id": 0, "safer_response_id": 0}
"""

from __future__ import annotations

from align.data.dialects.common import pair, verdict, without
from align.data.records import Row

ANSWERS, BETTER = ("response_0", "response_1"), "better_response_id"


def as_ours(where: str, row: Row) -> Row:
    """The pair. Which answer is the safer one stays beside it, not used."""
    if not row.keys() >= {*ANSWERS, BETTER}:
        return row
    first = verdict(where, row, BETTER, {0: True, 1: False})
    return pair(without(row, (*ANSWERS, BETTER)), row[ANSWERS[0]], row[ANSWERS[1]], first)
