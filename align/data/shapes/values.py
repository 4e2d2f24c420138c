"""Values of a row: the texts that they must be, what they spell, and whether they say anything."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import SupportsFloat

from align.ground.errors import InputError
from align.recipe.telling.problems import found

LEARNT = ("weight", "train", "loss")
"""Keys that say whether what an assistant says is learnt."""
PARTS = ("text", "input_text", "output_text")
"""Types of parts that are text (OpenAI's chat completions, and its responses)."""


def text_of(where: str, key: str, value: object) -> str:
    """A text, or a list of text parts, joined. Raises: InputError, also for parts that are no text, by their type."""
    if isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value):
        return "".join(_part(f"{where}: part {i} of {key}", part) for i, part in enumerate(value, 1))
    return plain_text(where, key, value)


def _part(where: str, part: Mapping[str, object]) -> str:
    if part["type"] not in PARTS:
        raise InputError(
            f"{where} is of type {quoted(part['type'])}; only parts of type text can be rendered. "
            "Remove the part or the row."
        )
    others = [key for key, value in part.items() if key not in ("type", "text") and not nothing(value)]
    unread = [key for key in others if not (key in LEARNT and part[key] == 1)]
    if unread:
        raise InputError(f"{where} has {quoted(unread[0])}, which is not read of a part. Remove it, or the row.")
    return plain_text(where, "text", part.get("text"))


def plain_text(where: str, key: str, value: object) -> str:
    """A text of a message. Raises: InputError."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} is {found(value)}; expected text.")
    return encodable(where, value)


def encodable(where: str, text: str) -> str:
    """The text, if it can be written. Raises: InputError for half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise InputError(
            f"{where} holds half a surrogate pair ({half!r}), which is no text. Repair or remove the row."
        ) from error
    return text


def as_json(where: str, value: object) -> str:
    """The JSON of a value. Raises: InputError for one that JSON cannot hold, such as a date or NaN, and for half a
    surrogate pair."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} holds what JSON cannot ({error}). Write it as text, or remove the row.") from error
    return encodable(where, text)


def nothing(value: object) -> bool:
    """Whether a value says nothing, as a column that other rows fill: null, or empty."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def quoted(value: object) -> str:
    """A text in quotes; any other value as it was found."""
    return json.dumps(value) if isinstance(value, str) else found(value)


def literal(value: object) -> object:
    """What a text spells in JSON or in Python syntax (some published files hold lists so), else the text; any other
    value as it is."""
    if not isinstance(value, str):
        return value
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return parse(value)
    return value


def number(value: object) -> float:
    """A number, also as text, since CSV knows nothing else; NaN for anything else."""
    if value is None:  # what most rows have here, and a protocol is slow to ask
        return math.nan
    if isinstance(value, (str, bytes, int, float, SupportsFloat)):
        with suppress(TypeError, ValueError, OverflowError):
            return float(value)
    return math.nan


def content(where: str, key: str, value: object) -> str:
    """A text of a row. Raises: InputError."""
    if not isinstance(value, str):
        raise InputError(f'{where}: "{key}" is {found(value)}; expected text.')
    return encodable(f'{where}: "{key}"', value)
