"""An answer in steps, and whether each of them is right (TRL's stepwise supervision).

{"prompt": "3 + 4 + 5?", "completions": ["3 + 4 is 7.", "7 + 5 is 13."], "labels": [true, false]}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from align.data.records import Row, Stepwise
from align.data.shapes.keys import ASKED, STEPS, STEPWISE, check_refused, first, need
from align.data.shapes.label import is_good
from align.data.shapes.messages import DIALOGUES
from align.data.shapes.opening import opening, tools
from align.data.shapes.values import content, literal, number
from align.ground.errors import InputError
from align.recipe.telling.problems import found

TEXTS, LABELS = STEPS


class Wrong:
    """The figures by which the labels of a file call steps wrong: the first place of each."""

    def __init__(self) -> None:
        self.places: dict[int, str] = {}

    def note(self, where: str, labels: Sequence[object]) -> None:
        for label in labels:
            figure = number(label)
            if figure in (0, -1) and not isinstance(label, bool):
                self.places.setdefault(int(figure), where)

    def check(self) -> None:
        """Raises: InputError for 0 and -1 both: beside 1 these are three kinds, of which 0 is neutral (PRM800K)."""
        if len(self.places) > 1:
            raise InputError(
                f'{self.places[0]} has 0 in "{LABELS}" and {self.places[-1]} has -1; with both in a file 0 means '
                "neutral, and a step is right or wrong here. Write every 0 as 1, as Lightman et al. count neutral "
                "steps, or as -1."
            )


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
        wrong.note(where, labels)
        return Stepwise(prompt, texts, good, separator, where, tools(where, row))

    return read


def _list(where: str, key: str, value: object) -> list[object]:
    given = literal(value)
    if not isinstance(given, list) or not given:
        raise InputError(f'{where}: "{key}" is {found(value)}; expected a list, an entry for each step.')
    return given
