"""Message trees of OpenAssistant (Köpf et al. 2023, arXiv 2304.07327): replies ranked by people, rank 0 is best.

{"prompt": {"role": "prompter", "text": "Hi", "replies": [{"role": "assistant", "text": "Hello!", "rank": 0,
 "replies": []}, {"role": "assistant", "text": "What?", "rank": 1, "replies": []}]}}
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from align.data.dialects.common import without
from align.data.records import Row

ROLES = {"prompter": "user", "assistant": "assistant"}


def as_ours(where: str, row: Row) -> Row | list[Row]:
    """A list of ranked answers for each message of a person that has several."""
    root = row.get("prompt")
    if not isinstance(root, dict) or "replies" not in root or "text" not in root:
        return row
    return [{**without(row, ("prompt",)), **asked} for asked in _asked(root, [])]


def _asked(node: Row, before: list[Row]) -> Iterator[Row]:
    """Each prompt in the tree below a message, with its ranked answers."""
    path = [*before, {"role": ROLES.get(str(node.get("role")), node.get("role")), "content": node.get("text")}]
    replies = [cast(Row, reply) for reply in cast("list[object]", node.get("replies") or []) if isinstance(reply, dict)]
    ranked = [r for r in replies if r.get("role") == "assistant" and r.get("rank") is not None]
    if len(ranked) > 1:
        yield {"messages": path, "responses": [r["text"] for r in ranked], "ranks": [r["rank"] for r in ranked]}
    for reply in replies:
        yield from _asked(reply, path)
