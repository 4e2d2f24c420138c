"""Several answers with scores (more is better) or ranks (1 is best), which make pairs.

{"prompt": "Hi", "responses": ["Hello!", "Hm.", "What?"], "scores": [9, 5, 1]}
{"prompt": "Hi", "responses": ["Hello!", "Hm.", "What?"], "ranks": [1, 2, 3]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

from align.data.records import Row
from align.data.shapes.keys import RANKED
from align.data.shapes.values import number
from align.ground.errors import InputError

RESPONSES, SCORES, RANKS = RANKED


def is_ranked(row: Mapping[str, object]) -> bool:
    """Whether a row holds such answers."""
    return isinstance(row.get(RESPONSES), list) and isinstance(row.get(SCORES, row.get(RANKS)), list)


def _read(where: str, row: Row) -> tuple[list[object], list[float]]:
    """The answers, and what each is worth. Raises: InputError for fewer than two, and where not each has its number."""
    answers, key = row[RESPONSES], SCORES if isinstance(row.get(SCORES), list) else RANKS
    given = row[key]
    assert isinstance(answers, list) and isinstance(given, list)
    worth = [number(value) * (1 if key == SCORES else -1) for value in given]
    if len(answers) < 2 or len(worth) != len(answers) or not all(map(math.isfinite, worth)):
        numbers = sum(map(math.isfinite, worth))
        raise InputError(
            f'{where}: "{RESPONSES}" holds {len(answers)} answers and "{key}" {numbers} numbers; '
            "expected at least two answers, and a number for each."
        )
    return answers, worth


def best_first(where: str, row: Row) -> tuple[list[Row], int]:
    """(the best answer as a pair with each of the others, from the second best on, how many were left out because one
    before them is worth the same). Raises: InputError as `pairs_of`."""
    answers, worth = _read(where, row)
    others = {name: value for name, value in row.items() if name not in RANKED}
    order: list[int] = []
    for i in sorted(range(len(answers)), key=lambda i: -worth[i]):
        if not order or worth[i] < worth[order[-1]]:
            order.append(i)
    best, *rest = order
    return [{**others, "chosen": answers[best], "rejected": answers[i]} for i in rest], len(answers) - len(order)


def pairs_of(where: str, row: Row) -> list[Row]:
    """Every two of the answers as a pair (Ouyang et al. 2022, arXiv 2203.02155, section 3.5: K choose 2); a tie where
    they are worth the same.

    Raises: InputError for fewer than two, and where not each has its number.
    """
    answers, worth = _read(where, row)
    others = {name: value for name, value in row.items() if name not in RANKED}
    pairs = []
    for i, j in combinations(range(len(answers)), 2):
        better, worse = (i, j) if worth[i] >= worth[j] else (j, i)
        tie = {"tie": True} if worth[i] == worth[j] else {}
        pairs.append({**others, "chosen": answers[better], "rejected": answers[worse], **tie})
    return pairs
