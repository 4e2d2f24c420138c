"""Rated generations as distilabel writes them (its UltraFeedback task).

{"instruction": "Hi", "generations": ["Hello!", "What?"], "ratings": [5, 2]}
"""

from __future__ import annotations

from align.data.dialects.common import without
from align.data.records import Row

RATINGS = ("ratings", "rating")


def as_ours(where: str, row: Row) -> Row:
    """The generations with their ratings; where a row holds the pair already, that counts."""
    rated = next((name for name in RATINGS if isinstance(row.get(name), list)), None)
    if rated is None or not isinstance(row.get("generations"), list) or {"chosen", "rejected"} <= row.keys():
        return row
    return {**without(row, ("generations", rated)), "responses": row["generations"], "scores": row[rated]}
