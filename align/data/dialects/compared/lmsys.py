"""Pairs of the LMSYS human preference data: turns as JSON in texts, one answer of each model to each.

{"prompt": "[\\"Hi\\"]", "response_a": "[\\"Hello!\\"]", "response_b": "[\\"What?\\"]",
 "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
"""

from __future__ import annotations

from align.data.dialects.common import pair, without
from align.data.records import Row
from align.data.shapes.values import literal, number
from align.ground.errors import InputError

ANSWERS = ("response_a", "response_b")
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")


def as_ours(where: str, row: Row) -> Row:
    """Two whole dialogues. Raises: InputError where not exactly one of both or a tie is said to win."""
    if not row.keys() >= {"prompt", *ANSWERS, *WINNERS}:
        return row
    won = [number(row[key]) for key in WINNERS]
    if sorted(won) != [0, 0, 1]:
        raise InputError(f"{where}: of {', '.join(WINNERS)} exactly one must be 1. Repair or remove the row.")
    one, two = (_dialogue(where, row, key) for key in ANSWERS)
    first = None if won[2] else won[0] == 1
    return pair(without(row, ("prompt", *ANSWERS, *WINNERS)), one, two, first)


def _dialogue(where: str, row: Row, key: str) -> list[Row]:
    asked, said = literal(row["prompt"]), literal(row[key])
    asked, said = (value if isinstance(value, list) else [value] for value in (asked, said))
    if len(asked) != len(said):
        raise InputError(f'{where}: "prompt" has {len(asked)} turns and "{key}" {len(said)}. Repair or remove the row.')
    turns = zip(asked, said, strict=True)
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
