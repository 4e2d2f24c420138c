"""A pair of answers, the better and the worse, and what is said about them.

{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "margin": 1.0, "rejected_cut": true}
{"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": [{"role": "user", …}, …]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from align.data.records import Messages
from align.data.shapes.answer import answer, in_turns
from align.data.shapes.hh import is_dialogue
from align.data.shapes.keys import ASKED, first, says
from align.data.shapes.messages import DIALOGUES
from align.data.shapes.needed import need
from align.data.shapes.opening import opening
from align.data.shapes.values import number
from align.ground.errors import InputError
from align.recipe.telling.problems import found


def holds_two_dialogues(row: Mapping[str, object]) -> bool:
    """Whether the answers of a pair are whole dialogues, which hold their prompt themselves."""
    return is_dialogue(row.get("chosen")) and is_dialogue(row.get("rejected"))


def key_of_pair(row: Mapping[str, object]) -> str | None:
    """Where the prompt of a pair stands; None where two dialogues hold it themselves."""
    key = first(row, ("prompt", *DIALOGUES, *ASKED))
    apart = key is not None and says(row[key])
    return key if apart or not holds_two_dialogues(row) else None


def pair(where: str, row: Mapping[str, object]) -> tuple[Messages, Messages, Messages]:
    """(prompt, chosen, rejected). Without a prompt a row holds two whole dialogues, and the prompt is what they have in
    common."""
    key = key_of_pair(row)
    if key or not holds_two_dialogues(row):
        need(where, row, "preference")
        assert key is not None
        prompt = opening(where, row, key)
        chosen, rejected = (answer(where, k, in_turns(row[k], row[key]), prompt) for k in ("chosen", "rejected"))
        return prompt, chosen, rejected
    chosen, rejected = (opening(where, row, k) for k in ("chosen", "rejected"))
    prompt = _common_prompt(chosen, rejected)
    if not prompt:
        raise InputError(
            f'{where}: "chosen" and "rejected" have no prompt in common. '
            "Begin both with the same turns, or add a prompt."
        )
    return prompt, answer(where, "chosen", chosen, prompt), answer(where, "rejected", rejected, prompt)


def _common_prompt(chosen: Messages, rejected: Messages) -> Messages:
    """The turns that two dialogues begin with, before both go on with an answer."""
    differ = (i for i, (c, r) in enumerate(zip(chosen, rejected, strict=False)) if c != r)
    common = next(differ, min(len(chosen), len(rejected)))
    while common and not all(len(d) > common and d[common].role == "assistant" for d in (chosen, rejected)):
        common -= 1
    return chosen[:common]


def margin(where: str, value: object) -> float | None:
    """By how much the chosen answer is the better. Raises: InputError."""
    if value is None or value == "":
        return None
    gap = math.nan if isinstance(value, bool) else number(value)
    if not math.isfinite(gap):
        raise InputError(f'{where}: "margin" is {found(value)}; expected a finite number, or no margin.')
    if gap < 0:
        raise InputError(
            f'{where}: "margin" is {found(value)}, which calls the rejected answer the better one. '
            "Swap the answers, or remove it."
        )
    return gap


def was_cut(where: str, key: str, value: object) -> bool:
    """Whether an answer was cut off before its end: true or false, also as text. Raises: InputError."""
    said = str(value).lower() if says(value) else "false"
    if said not in ("true", "false"):
        raise InputError(f'{where}: "{key}" is {found(value)}; expected true or false.')
    return said == "true"
