"""Pairs of the Chatbot Arena (Zheng et al. 2023, arXiv 2306.05685): two whole conversations and who won.

{"conversation_a": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
 "conversation_b": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "What?"}], "winner": "model_a"}
"""

from __future__ import annotations

from align.data.dialects.common import pair, verdict, without
from align.data.records import Row

DIALOGUES = ("conversation_a", "conversation_b")
SAYS: dict[object, bool | None] = {
    "model_a": True, "model_b": False, "tie": None, "tie (bothbad)": None, "both_bad": None,
}  # fmt: skip


def as_ours(where: str, row: Row) -> Row:
    """The pair."""
    if not row.keys() >= {*DIALOGUES, "winner"}:
        return row
    first = verdict(where, row, "winner", SAYS)
    return pair(without(row, (*DIALOGUES, "winner")), row[DIALOGUES[0]], row[DIALOGUES[1]], first)
