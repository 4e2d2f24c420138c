"""Turns as pairs of input and output (Capybara, Daniele 2023), and as a list of texts (LIMA, Zhou et al. 2023, arXiv
2305.11206; UltraChat).

{"conversation": [{"input": "Hi", "output": "Hello!"}]}
{"conversations": ["Hi", "Hello!"]}
{"data": ["Hi", "Hello!"]}
"""

from __future__ import annotations

from align.data.dialects.common import holds, without
from align.data.records import Row

TEXTS = ("conversations", "conversation", "data")
ROLES = ("user", "assistant")


def as_ours(where: str, row: Row) -> Row:
    """The dialogue; a person speaks first."""
    if holds(row, "conversation", "input", "output"):
        turns = row["conversation"]
        assert isinstance(turns, list)
        messages = [
            {"role": r, "content": turn[k]} for turn in turns for r, k in zip(ROLES, ("input", "output"), strict=True)
        ]
        return {"messages": messages, **without(row, ("conversation",))}
    for key in TEXTS:
        texts = row.get(key)
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            messages = [{"role": ROLES[i % 2], "content": text} for i, text in enumerate(texts)]
            return {"messages": messages, **without(row, (key,))}
    return row
