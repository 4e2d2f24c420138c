"""Ranked answers of Nectar (Zhu et al. 2023): rank 1 is best.

{"prompt": "\\n\\nHuman: Hi\\n\\nAssistant: ",
 "answers": [{"answer": "Hello!", "rank": 1}, {"answer": "What?", "rank": 2}]}
"""

from __future__ import annotations

from align.data.dialects.common import column, holds, without
from align.data.records import Row


def as_ours(where: str, row: Row) -> Row:
    """The answers with their ranks."""
    if not holds(row, "answers", "answer", "rank"):
        return row
    more = {"responses": column(row, "answers", "answer"), "ranks": column(row, "answers", "rank")}
    return {**without(row, ("answers",)), **more}
