"""Answers in the order of their worth, best first, which only who gives them can know: `shape: ranked`.

{"prompt": "Hi", "answers": ["Hello!", "Hm.", "What?"]}
{"instruction": "Hi", "output": ["Hello!", "What?"]}
"""

from __future__ import annotations

from align.data.dialects.common import without
from align.data.records import Row

LISTS = ("responses", "answers", "completions", "generations", "outputs", "output")


def as_ours(where: str, row: Row) -> Row:
    """The answers with their places as ranks."""
    key = next((name for name in LISTS if isinstance(row.get(name), list)), None)
    if key is None or "ranks" in row or "scores" in row:
        return row
    answers = row[key]
    assert isinstance(answers, list)
    return {**without(row, (key,)), "responses": answers, "ranks": [*range(1, len(answers) + 1)]}
