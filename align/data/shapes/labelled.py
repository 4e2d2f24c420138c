"""An answer to a prompt, and whether it is a good one.

{"prompt": "Hi", "completion": "Hello!", "label": true}
{"messages": [{"role": "user", …}, {"role": "assistant", …}], "label": false}
"""

from __future__ import annotations

from collections.abc import Mapping

from align.data.records import Messages
from align.data.shapes.answer import answer, in_turns
from align.data.shapes.keys import ASKED, COMPLETION, LABELLED, LABELS, NO, YES, first, need, said
from align.data.shapes.messages import DIALOGUES
from align.data.shapes.opening import opening
from align.ground.errors import InputError
from align.recipe.problems import found

GOOD, BAD = (*YES, "desirable", "good"), (*NO, "undesirable", "bad")


def labelled(where: str, row: Mapping[str, object]) -> tuple[Messages, Messages, bool]:
    """(prompt, answer, whether it is good). Raises: InputError."""
    key = first(row, (*DIALOGUES, *ASKED))
    if key in DIALOGUES:
        need(where, {**row, "prompt": "", "completion": ""}, LABELLED)
        messages = opening(where, row, key)
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise InputError(
                f'{where}: "{key}" does not end with an answer to judge. Expected a dialogue whose last message is the '
                "assistant's."
            )
        prompt, said_last = messages[:-1], answer(where, key, messages[-1:], ())
    else:
        need(where, row, LABELLED)
        assert key is not None
        prompt, name = opening(where, row, key), first(row, COMPLETION) or ""
        said_last = answer(where, name, in_turns(row[name], row[key]), prompt, row)
    return prompt, said_last, is_good(where, row)


def is_good(where: str, row: Mapping[str, object]) -> bool:
    """What the label says. Raises: InputError."""
    name = first(row, LABELS) or ""
    value = said(row[name])
    if value not in (*GOOD, *BAD):
        raise InputError(
            f'{where}: "{name}" is {found(row[name])}; expected true (a good answer) or false (a bad one).'
        )
    return value in GOOD
