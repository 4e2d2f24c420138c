"""Scored answers of StackExchange as HuggingFaceH4 publishes them (after Askell et al. 2021, arXiv 2112.00861).

{"question": "How do I boil an egg?",
 "answers": [{"text": "In water.", "pm_score": 5}, {"text": "Why?", "pm_score": 0}]}
"""

from __future__ import annotations

from align.data.dialects.common import column, holds, without
from align.data.records import Row


def as_ours(where: str, row: Row) -> Row:
    """The answers with their scores."""
    if not holds(row, "answers", "text", "pm_score"):
        return row
    more = {"responses": column(row, "answers", "text"), "scores": column(row, "answers", "pm_score")}
    return {**without(row, ("answers",)), **more}
