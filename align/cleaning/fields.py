"""Texts of a row, where in it they stand, and what they are for.

{"id": 7, "prompt": "Hi", "completion": "Hello!"}    prompt is asked, completion is learnt, id is left as it is
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from align.data.records import Row
from align.data.shapes.columns import inside
from align.data.shapes.keys import ASIDE, COMPLETION, LABELS, OPENING, PAIR, SCORES, TIED, VERDICTS, plain_name
from align.data.shapes.messages import DIALOGUES, OTHER_ROLES, REASONING
from align.data.shapes.values import LEARNT, literal

Place = tuple[str | int, ...]
"""Keys and indices from the row to a text."""
ASKED, CALLS = "asked", "calls"
"""Parts that are read: what is asked, and what tools are called with."""
REJECTED = ("rejected", "responses")
"""Parts that need not be good: the worse answer, and answers of which some are."""
READ = {*OPENING, "conversation", "dialogue", "turns", "context_messages", "user", "human", "problem", "title", "body"}
"""Keys of what is asked; those of a dialogue hold answers too."""
ANSWERS = {
    *COMPLETION, *REASONING, *REJECTED, "chosen", "text", "content", "reply", "solution", "target", "completions",
    "answers", "responses_text", "conversation_a", "conversation_b",
    *(f"{name}{mark}" for name in ("response", "output", "answer", "response_", "output_", "answer_")
      for mark in ("0", "1", "2", "a", "b", "A", "B")),
}  # fmt: skip
"""Keys of answers, also those of other people's dialects."""
JUDGED = {*VERDICTS, *LABELS, *TIED, *ASIDE, *PAIR[2:], "scores", "ranks", *(key for two in SCORES for key in two)}
"""Keys that say how good an answer is."""
COMPARED = {*READ, *ANSWERS, *JUDGED, "tools", "functions"}
"""Keys in which two rows that are duplicates agree."""
IDS = ("id", "tool_call_id")
MANY = 1_000_000
"""From here a number that a tool is called with is read: it may be one to call, or an account's."""


class Said(NamedTuple):
    """A text of a row, its place, and its part: `ASKED`, `CALLS`, or the key of the answer."""

    place: Place
    part: str
    text: str

    @property
    def is_learnt(self) -> bool:
        return self.part not in (ASKED, CALLS)


def texts(row: Row, columns: Mapping[str, str] | None = None) -> list[Said]:
    """The texts of a row, in their order; `columns` says what the row calls keys of ours."""
    keys = {theirs: key for key, theirs in (columns or {}).items()}
    inner = {tuple(theirs.split(".")): key for theirs, key in keys.items() if "." in theirs and theirs not in row}
    found: list[Said] = []
    for name, value in opened(row).items():
        key = keys.get(name, plain_name(name))
        nested = {path: key for path, key in inner.items() if path[0] == name}
        if nested and isinstance(value, dict):
            for path, key in nested.items():
                found += _in(path, key, inside(row, ".".join(path)))
        elif key not in JUDGED and key not in ("tools", "functions"):
            found += _in((name,), key, value)
    return found


def opened(row: Row) -> Row:
    """The row with dialogues as lists that are written as text, as in CSV."""
    texts = {name: value for name, value in row.items() if isinstance(value, str) and plain_name(name) in DIALOGUES}
    return {**row, **{name: literal(value) for name, value in texts.items()}} if texts else row


def _in(place: Place, key: str, value: object) -> Iterator[Said]:
    if key in READ:
        yield from _walk(place, ASKED, key, value)
    elif key in ANSWERS:
        yield from _walk(place, key, key, value)


def _walk(place: Place, part: str, key: str, value: object) -> Iterator[Said]:
    """Texts below a value whose part is this, but for messages, which say who speaks."""
    if isinstance(value, str):
        yield Said(place, part, value)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _walk((*place, i), part, key, inner)
    elif isinstance(value, dict):
        speaker = value.get("role", value.get("from"))
        if isinstance(speaker, str):
            is_answer = OTHER_ROLES.get(speaker, speaker) == "assistant" and all(value.get(k, 1) for k in LEARNT)
            part = key if is_answer else ASKED
        for name in ("content", "value", "text", *REASONING):
            if name in value:
                yield from _walk((*place, name), part, key, value[name])
        for name in ("tool_calls", "function_call"):
            yield from _leaves((*place, name), value.get(name))


def _leaves(place: Place, value: object) -> Iterator[Said]:
    """All texts, and long numbers, that tools are called with."""
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in inside:
            yield from _leaves((*place, name), inner)
    elif "arguments" in place and (isinstance(value, str) or (type(value) is int and abs(value) >= MANY)):
        yield Said(place, CALLS, str(value))


def ours(row: Row, columns: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    """What a row says, by the keys that are ours."""
    keys = {theirs: key for key, theirs in columns.items()}
    return ((keys.get(name, plain_name(name)), value) for name, value in row.items())


def beside(row: Row, found: Sequence[Said], columns: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What a row says beside its texts, to compare rows by: how good its answers are, who speaks, what tools there are
    and which is called with what, answers that are figures."""
    places = {text.place for text in found}
    bare = {name: _without((name,), value, places) for name, value in opened(row).items()}
    said = ((key, value) for key, value in ours(bare, columns) if key in COMPARED)
    return tuple(sorted((key, repr(value)) for key, value in said if value is not None))


def _without(place: Place, value: object, places: Collection[Place]) -> object:
    """A value without the texts at these places, and the ids of calls, which differ where nothing else does."""
    if place in places:
        return None
    if isinstance(value, list):
        return [_without((*place, i), inner, places) for i, inner in enumerate(value)]
    if isinstance(value, dict):
        kept = ((name, _without((*place, name), inner, places)) for name, inner in value.items() if name not in IDS)
        return sorted((str(name), inner) for name, inner in kept if inner is not None)
    return value


def left(row: Row, found: list[Said]) -> list[str]:
    """Keys of a row that hold text and are not cleaned."""
    read = {text.place[0] for text in found}
    return [name for name, value in row.items() if name not in read and isinstance(value, str | list | dict) and value]


def replaced(row: Row, new: Mapping[Place, str]) -> Row:
    """The row with other texts at some places, `opened`; the given one stays as it is."""
    if not new:
        return row
    out = copy.deepcopy(opened(row))
    for place, text in new.items():
        at: object = out
        for step in place[:-1]:
            at = at[step]  # type: ignore[index]
        at[place[-1]] = text  # type: ignore[index]
    return out
