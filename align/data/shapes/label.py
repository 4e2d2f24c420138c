"""Whether an answer is desirable.

{"prompt": "Hi", "completion": "Hello!", "label": true}
{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "What?"}], "kto_tag": false}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from align.data.records import Messages
from align.data.shapes.answer import answer, in_turns
from align.data.shapes.keys import ASKED, BAD, COMPLETION, GOOD, LABELLED, LABELS, first, said, says
from align.data.shapes.messages import DIALOGUES
from align.data.shapes.needed import need
from align.data.shapes.opening import opening
from align.data.shapes.values import number
from align.ground.errors import InputError
from align.recipe.telling.problems import found


class Wrong:
    """The figures by which labels call answers, or steps, bad in all files of a run: the first place of each. `told`
    says what is either good or bad, and what to do."""

    def __init__(self, told: str) -> None:
        self.told = told
        self.places: dict[int, str] = {}

    def note(self, where: str, key: str, labels: Iterable[object]) -> None:
        for label in labels:
            figure = number(label)
            if figure in (0, -1) and not isinstance(label, bool):
                self.places.setdefault(int(figure), f'{where} has {int(figure)} in "{key}"')

    def check(self) -> None:
        """Raises: InputError for 0 and -1 both: beside 1 these are three kinds, of which 0 is neutral (PRM800K)."""
        if len(self.places) > 1:
            raise InputError(f"{self.places[0]}, and {self.places[-1]}: beside -1, 0 means neutral, and {self.told}")


def label_of(where: str, row: Mapping[str, object]) -> bool:
    """What the label says: true or false, 1 or 0 (or -1), or a word for good or bad. Raises: InputError."""
    labels = {is_good(where, key, row[key]): key for key in LABELS if says(row.get(key))}
    if len(labels) > 1:
        raise InputError(f"{where}: has {' and '.join(LABELS)}, which differ. Keep one of them.")
    if not labels:
        raise InputError(f'{where}: "{first(row, LABELS)}" says nothing; expected true (desirable) or false.')
    return next(iter(labels))


def is_good(where: str, key: str, value: object) -> bool:
    """What a label says. Raises: InputError for what is none."""
    text, figure = said(value), number(value)
    if text in GOOD or figure == 1:
        return True
    if text in BAD or figure in (0, -1):
        return False
    raise InputError(f'{where}: "{key}" is {found(value)}; expected true (desirable) or false.')


def answered(where: str, row: Mapping[str, object]) -> tuple[Messages, Messages]:
    """(prompt, answer) of a row; without an answer of its own a dialogue's last message is the answer. Raises:
    InputError."""
    need(where, row, LABELLED)
    key, given = first(row, (*DIALOGUES, *ASKED)) or "", first(row, COMPLETION)
    prompt = opening(where, row, key)
    if given and says(row[given]):
        return prompt, answer(where, given, in_turns(row[given], row[key]), prompt, row)
    if key not in DIALOGUES or prompt[-1].role != "assistant" or len(prompt) < 2:
        raise InputError(
            f'{where}: "completion" is missing. Expected an answer, or a dialogue that ends with one, beside the label.'
        )
    return prompt[:-1], answer(where, key, prompt[-1:], prompt[:-1], row)
