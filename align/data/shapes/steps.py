"""An answer in steps, and whether each of them is right (TRL's stepwise supervision).

{"prompt": "3 + 4 + 5?", "completions": ["3 + 4 is 7.", "7 + 5 is 13."], "labels": [true, false]}
"""

from __future__ import annotations

from collections.abc import Callable

from align.data.records import Row, Stepwise
from align.data.shapes.keys import ASKED, STEPS, STEPWISE, check_refused, first
from align.data.shapes.label import Wrong, is_good
from align.data.shapes.messages import DIALOGUES
from align.data.shapes.needed import need
from align.data.shapes.opening import opening, tools
from align.data.shapes.values import content, literal
from align.ground.errors import InputError
from align.recipe.telling.problems import found

TEXTS, LABELS = STEPS


def stepwise(separator: str, wrong: Wrong) -> Callable[[str, Row], Stepwise]:
    """What reads a row, whose steps `separator` joins to an answer, and notes in `wrong` what calls steps so."""

    def read(where: str, row: Row) -> Stepwise:
        check_refused(where, row, STEPWISE)
        need(where, row, STEPWISE)
        prompt = opening(where, row, first(row, (*DIALOGUES, *ASKED)) or "")
        steps, labels = (_list(where, key, row[key]) for key in STEPS)
        if len(steps) != len(labels):
            raise InputError(
                f'{where}: "{TEXTS}" holds {len(steps)} steps and "{LABELS}" {len(labels)} labels; expected one label '
                "for each step."
            )
        texts = tuple(content(where, TEXTS, step) for step in steps)
        if empty := [i for i, text in enumerate(texts, 1) if not text.strip()]:
            raise InputError(f'{where}: step {empty[0]} of "{TEXTS}" is empty. Leave it out, and its label.')
        good = tuple(is_good(where, LABELS, label) for label in labels)
        wrong.note(where, LABELS, labels)
        return Stepwise(prompt, texts, good, separator, where, tools(where, row))

    return read


def _list(where: str, key: str, value: object) -> list[object]:
    given = literal(value)
    if not isinstance(given, list) or not given:
        raise InputError(f'{where}: "{key}" is {found(value)}; expected a list, an entry for each step.')
    return given
