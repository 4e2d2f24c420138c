"""Pairs of HelpSteer2-Preference and HelpSteer3 (Wang et al. 2024, arXiv 2410.01257): from -3, the first answer is much
better, to 3, the second is.

{"prompt": "Hi", "response_1": "Hello!", "response_2": "What?", "preference_strength": -2}
{"context": [{"role": "user", "content": "Hi"}], "response1": "Hello!", "response2": "What?", "overall_preference": -2}
"""

from __future__ import annotations

from align.data.dialects.common import pair, verdict, without
from align.data.records import Row

FORMS = (("response_1", "response_2", "preference_strength"), ("response1", "response2", "overall_preference"))
SAYS: dict[object, bool | None] = {-3: True, -2: True, -1: True, 0: None, 1: False, 2: False, 3: False}


def as_ours(where: str, row: Row) -> Row:
    """The pair; how much the better one is better is not used."""
    for one, two, key in FORMS:
        if row.keys() >= {one, two, key}:
            others = without(row, (one, two, key))
            if isinstance(others.get("context"), list):
                others = {"messages": others.pop("context"), **others}
            return pair(others, row[one], row[two], verdict(where, row, key, SAYS))
    return row
