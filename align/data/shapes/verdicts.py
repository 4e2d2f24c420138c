"""What a row says of itself: that its answers are equally good, or that it is to be left out."""

from __future__ import annotations

import math
from collections.abc import Mapping

from align.data.shapes.keys import ASIDE, NO, SCORES, SURE, TIED, TIES, VERDICTS, YES, said, says
from align.data.shapes.values import number
from align.ground.errors import InputError


def is_tie(where: str, row: Mapping[str, object]) -> bool:
    """Whether a pair's answers are called equally good. Raises: InputError where the rejected one is called the
    better."""
    for (chosen, rejected), sign in SCORES.items():
        if not (says(row.get(chosen)) and says(row.get(rejected))):
            continue
        gap = sign * (number(row[chosen]) - number(row[rejected]))
        if not math.isfinite(gap):
            raise InputError(f'{where}: "{chosen}" and "{rejected}" are not two numbers. Repair or remove them.')
        if gap < 0:
            raise InputError(
                f'{where}: by "{chosen}" ({row[chosen]}) and "{rejected}" ({row[rejected]}) the rejected answer is '
                "the better one. Swap the answers, or remove the keys."
            )
        if gap == 0:
            return True
    if any(_is_yes(where, row, key) for key in TIED):
        return True
    return any(said(row.get(key)) in TIES for key in VERDICTS) or any(number(row.get(key)) == 0.5 for key in SURE)


def put_aside(where: str, row: Mapping[str, object], kind: str) -> str | None:
    """The key by which a row asks to be left out; None where none does. A prompt's may say something else, to a judge.
    Raises: InputError where one says neither yes nor no."""
    if row.keys().isdisjoint(ASIDE):
        return None
    keys = [key for key in ASIDE if kind != "prompt" or said(row.get(key)) in YES]
    return next((key for key in keys if _is_yes(where, row, key)), None)


def _is_yes(where: str, row: Mapping[str, object], key: str) -> bool:
    """Whether a key says yes; one without a value says no. Raises: InputError for another value than yes or no."""
    value = row.get(key)
    if says(value) and said(value) not in (*YES, *NO):
        raise InputError(f'{where}: "{key}" is {value!r:.60}. Expected true or false; or remove the key.')
    return said(value) in YES
