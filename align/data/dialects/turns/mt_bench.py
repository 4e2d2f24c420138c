"""Questions of MT-bench (Zheng et al. 2023, arXiv 2306.05685). The second turn follows on the model's own answer, so
the first is asked alone; judges get all of them.

{"question_id": 81, "category": "writing", "turns": ["Write a travel blog.", "Start every sentence with A."]}
"""

from __future__ import annotations

from align.data.dialects.common import without
from align.data.records import Row

KEYS = ("turns", "prompt")


def as_ours(where: str, row: Row) -> Row:
    """The first turn as the prompt."""
    for key in KEYS:
        turns = row.get(key)
        if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
            return {"prompt": turns[0], **without(row, ("prompt",)), "turns": turns}
    return row
