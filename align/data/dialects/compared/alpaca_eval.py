"""Annotations of AlpacaEval and AlpacaFarm (Dubois et al. 2023, arXiv 2305.14387): 1, the first output is preferred, to
2, the second; 1.5 or 0 is a tie, and between them is how sure the annotator was.

{"instruction": "Hi", "output_1": "Hello!", "output_2": "What?", "preference": 1}
"""

from __future__ import annotations

from align.data.dialects.common import pair, without
from align.data.records import Row
from align.data.shapes.values import number
from align.ground.errors import InputError
from align.recipe.telling.problems import found

ANSWERS = ("output_1", "output_2")


def as_ours(where: str, row: Row) -> Row:
    """The pair; how sure the annotator was is not used. Raises: InputError for another preference."""
    if not row.keys() >= {*ANSWERS, "preference"}:
        return row
    said = number(row["preference"])
    if said != 0 and not 1 <= said <= 2:
        raise InputError(f'{where}: "preference" is {found(row["preference"])}; expected 1 to 2, or 0 for a tie.')
    first = None if said in (0, 1.5) else said < 1.5
    return pair(without(row, (*ANSWERS, "preference")), row[ANSWERS[0]], row[ANSWERS[1]], first)
