"""Prompts as OpenRLHF's own sets hold them.

{"context_messages": [{"role": "user", "content": "3 + 4?"}], "label": "7"}
"""

from __future__ import annotations

from align.data.dialects.common import without
from align.data.records import Row


def as_ours(where: str, row: Row) -> Row:
    """The dialogue."""
    if "context_messages" not in row or "messages" in row:
        return row
    return {"messages": row["context_messages"], **without(row, ("context_messages",))}
