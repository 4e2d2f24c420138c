"""Pairs as OpenAI's preference fine-tuning takes them.

{"input": {"messages": [{"role": "user", "content": "Hi"}], "tools": []},
 "preferred_output": [{"role": "assistant", "content": "Hello!"}],
 "non_preferred_output": [{"role": "assistant", "content": "What?"}]}
"""

from __future__ import annotations

from align.data.records import Row
from align.data.shapes.keys import says
from align.ground.errors import InputError

NAMES = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
OPENING = ("messages", "tools")


def as_ours(where: str, row: Row) -> Row:
    """The messages and tools of `input` beside the answers. Raises: InputError where it says something else too."""
    opening = row.get("input")
    if not isinstance(opening, dict) or not NAMES.keys() <= row.keys():
        return row
    unread = [key for key, value in opening.items() if key not in OPENING and says(value)]
    if unread:
        raise InputError(f'{where}: "input" has "{unread[0]}", which is not read. Remove it.')
    twice = [key for key in opening if key in row]
    if twice:
        raise InputError(f'{where}: has "{twice[0]}" beside "input", which holds it too. Keep one of them.')
    others = {NAMES.get(key, key): value for key, value in row.items() if key != "input"}
    return {key: opening[key] for key in OPENING if key in opening} | others
