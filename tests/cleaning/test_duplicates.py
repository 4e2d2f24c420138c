"""Near duplicates against the Jaccard index worked out on sets of words in plain Python."""

from __future__ import annotations

import random

import numpy as np
import pytest

from align.cleaning.alike.minhash import WORDS, Near
from align.cleaning.alike.shingles import Vocabulary, jaccard, shingles
from align.cleaning.words import is_unspaced, plain_words, words

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
HAN = [chr(0x4E00 + 7 * i) for i in range(900)]


def text(draw: random.Random, n: int, han: bool = False) -> str:
    made = draw.choices(HAN, k=n) if han else ["".join(draw.choices(SYLLABLES, k=3)) for _ in range(n)]
    return ("" if han else " ").join(made)


def edited(draw: random.Random, given: str, n: int) -> str:
    """With n words replaced."""
    found = given.split() if " " in given else list(given)
    for i in draw.sample(range(len(found)), n):
        found[i] = draw.choice(HAN) if " " not in given else "zzz" + draw.choice(SYLLABLES)
    return (" " if " " in given else "").join(found)


def index(one: str, other: str) -> float:
    """|A ∩ B| / |A ∪ B| of the runs of 5 words."""
    sets = [{tuple(w[i : i + WORDS]) for i in range(len(w) - WORDS + 1)} for w in map(plain_words, (one, other))]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_words_of_any_script() -> None:
    assert words("It's 你好吗 سلام دنیا สวัส") == ["It", "s", "你", "好", "吗", "سلام", "دنیا", "ส", "วั", "ส"]
    assert plain_words("ＨＥＬＬＯ ﬁne Straße") == ["hello", "fine", "strasse"]
    assert not is_unspaced("用Python写代码") and not is_unspaced("Hello, 世界")
    assert is_unspaced("今天的天气非常好，ok") and not is_unspaced("سلام دنیا")


@pytest.mark.parametrize("han", [False, True])
def test_the_index_is_that_of_the_sets(han: bool) -> None:
    draw, vocabulary = random.Random(1), Vocabulary()
    for _ in range(40):
        one = text(draw, draw.randint(10, 80), han)
        other = edited(draw, one, draw.randint(0, 3))
        a, b = (np.unique(shingles(vocabulary.ids(t), WORDS)) for t in (one, other))
        assert jaccard(a, b) == pytest.approx(index(one, other))


def test_planted_duplicates_are_found_and_no_others() -> None:
    """Rows of 60 words in two scripts, a fifth of them edited copies. A copy of index 0.8 or more goes, one below
    stays, and so does what only shares its prompt."""
    draw = random.Random(2)
    rows = [text(draw, 60, han=i % 2 == 0) for i in range(1200)]
    copies = [(i, edited(draw, rows[i], draw.randint(0, 4))) for i in draw.sample(range(1200), 300)]
    near = Near(0.8)
    for row in [*rows, *(copy for _, copy in copies)]:
        near.add(["the same question", row], "rows")
    found = near.duplicates()
    alike = {1200 + n: i for n, (i, copy) in enumerate(copies) if index(rows[i], copy) >= 0.8}
    assert 100 < len(alike) < 290
    assert {n: i for n, (i, _) in found.items()} == {n: i for n, i in alike.items() if n in found}
    assert len(found) >= 0.99 * len(alike)


def test_every_part_must_be_alike() -> None:
    """Pairs whose answers are swapped, questions on one long passage, rows of another verdict, and single signs are no
    duplicates. Negative control: the same rows twice are."""
    draw = random.Random(3)
    passage, one, other = text(draw, 300), text(draw, 30), text(draw, 30)
    rows = [
        ([passage, one, other], "a"),
        ([passage, other, one], "a"),
        ([passage, one, other], "b"),
        ([passage, one], "c"),
        ([passage, other], "c"),
        (["3 + 4", "7"], "d"),
        (["3 - 4", "7"], "d"),
        (["Good?", "👍"], "d"),
        (["Good?", "👎"], "d"),
    ]
    near = Near(0.8)
    for parts, group in rows * 2:
        near.add(parts, group)
    assert near.duplicates() == {9 + i: (i, 1.0) for i in range(9)}
