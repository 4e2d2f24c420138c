"""Scored completions of UltraFeedback as it was published (Cui et al. 2023, arXiv 2310.01377).

{"instruction": "Hi",
 "completions": [{"response": "Hello!", "overall_score": 8}, {"response": "What?", "overall_score": 3}]}
"""

from __future__ import annotations

from align.data.dialects.common import column, holds, without
from align.data.records import Row

SCORES = ("overall_score", "fine-grained_score")


def as_ours(where: str, row: Row) -> Row:
    """The completions with their overall scores, else the fine-grained ones."""
    score = next((name for name in SCORES if holds(row, "completions", "response", name)), None)
    if score is None:
        return row
    more = {"responses": column(row, "completions", "response"), "scores": column(row, "completions", score)}
    return {**without(row, ("completions",)), **more}
