"""Examples with a column that comes to them when they are asked for: the values of their own positions, whichever of
them are filled."""

from __future__ import annotations

import numpy as np
import pytest

from align.data.examples import Example
from align.data.views import Picked, WithColumn

PAIRS = [
    Example(((1, 2, 3, 4), (1, 2, 5)), ((False, False, True, True), (False, False, True)), shared=2),  # 3 + 2 positions
    Example(((6, 7),), ((False, True),)),  # 2 positions
    Example(((1, 8, 9), (1, 8)), ((False, True, True), (False, True)), shared=1),  # 3 + 2 positions
]


def columns(example: Example) -> list[list[float]]:
    return [list(row) for row in example.columns["x"]]


def test_each_has_the_values_of_its_positions() -> None:
    """A branch has a position for each token after the prefix, which is all that is shared but its last."""
    filled = WithColumn(PAIRS, range(3), "x", np.arange(12, dtype=np.float32))
    assert [columns(e) for e in filled] == [[[0, 1, 2], [3, 4]], [[5, 6]], [[7, 8, 9], [10, 11]]]
    assert filled[-1].sequences == PAIRS[2].sequences and columns(filled[-1]) == columns(filled[2])
    assert [columns(e) for e in filled[1:]] == [columns(filled[1]), columns(filled[2])]
    assert PAIRS[0].columns == {}
    twice = WithColumn(filled, range(3), "y", np.zeros(12, dtype=np.float32))
    assert set(twice[0].columns) == {"x", "y"} and columns(twice[0]) == columns(filled[0])


def test_others_stay_as_they_are() -> None:
    """Values are those of the chosen ones alone, in their order. Negative control: a value too few is refused."""
    some = WithColumn(PAIRS, [0, 2], "x", np.arange(10, dtype=np.float32))
    assert columns(some[2]) == [[5, 6, 7], [8, 9]] and some[1] is PAIRS[1]
    assert [*Picked(PAIRS, [2, 0])] == [PAIRS[2], PAIRS[0]]
    with pytest.raises(ValueError, match="9 values for 10 positions"):
        WithColumn(PAIRS, [0, 2], "x", np.arange(9, dtype=np.float32))
    with pytest.raises(IndexError):
        some[3]
