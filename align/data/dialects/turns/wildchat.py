"""Conversations of WildChat (Zhao et al. 2024, arXiv 2405.01470) and LMSYS-Chat-1M: messages that say more of
themselves.

{"conversation": [{"role": "user", "content": "Hi", "language": "English", "toxic": false}, {"role": "assistant", …}]}
"""

from __future__ import annotations

from align.data.dialects.common import holds, without
from align.data.records import Row

ABOUT = {
    "language", "toxic", "redacted", "timestamp", "turn_identifier", "hashed_ip", "header", "country", "state",
    "openai_id", "temperature", "top_p", "token_counter",
}  # fmt: skip
"""What a message says of itself, and no model reads."""


def as_ours(where: str, row: Row) -> Row:
    """The dialogue."""
    if not holds(row, "conversation", "role", "content"):
        return row
    messages = row["conversation"]
    assert isinstance(messages, list)
    return {"messages": [without(message, ABOUT) for message in messages], **without(row, ("conversation",))}
