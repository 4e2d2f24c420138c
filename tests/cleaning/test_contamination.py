"""Questions planted in rows, verbatim and edited, are found; edits are counted as by the recursion of the distance."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import pytest

from align.cleaning.clean import Cleaner
from align.cleaning.contamination import Decontaminator
from align.cleaning.edits import edits
from align.cleaning.fields import texts
from align.cleaning.settings import Cleaning, Decontamination
from align.cleaning.words import words
from align.ground.errors import InputError

NOUNS = ["river", "castle", "teacher", "engine", "garden", "violin", "comet", "parliament", "harbour", "spider"]
VERBS = ["builds", "loses", "paints", "measures", "borrows", "repairs", "forgets", "teaches", "discovers", "refuses"]
HAN = [chr(0x4E00 + 11 * i) for i in range(700)]


def question(draw: random.Random, n: int, han: bool) -> str:
    found = draw.choices(HAN, k=n) if han else [draw.choice(NOUNS) + str(draw.randint(0, 99)) for _ in range(n)]
    return "".join(found) + "？" if han else f"Which {' '.join(found)} {draw.choice(VERBS)}?"


def edited(draw: random.Random, given: str, share: float) -> str:
    """With at most this share of the words replaced, left out, or put in."""
    han = given.endswith("？")
    found = words(given)
    for _ in range(int(share * len(found))):
        at, new = draw.randrange(len(found)), draw.choice(HAN) if han else draw.choice(VERBS)
        found[at : at + draw.randint(0, 1)] = draw.choice([[], [new]])
    return ("" if han else " ").join(found)


def mistyped(draw: random.Random, given: str) -> str:
    """With a letter of a word of ours left out."""
    if given.endswith("？"):
        return given
    at = draw.randrange(6, len(given) - 1)
    return given[:at] + given[at + 1 :]


def plain(one: str, other: str) -> int:
    """The distance by its recursion."""

    @cache
    def of(i: int, j: int) -> int:
        if not (i and j):
            return i + j
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (one[i - 1] != other[j - 1]))

    return of(len(one), len(other))


def test_edits_are_those_of_the_recursion() -> None:
    draw = random.Random(1)
    for _ in range(150):
        one, other = ("".join(draw.choices("abc", k=draw.randint(0, 9))) for _ in range(2))
        assert edits(one, other) == plain(one, other)
        passages = [other[i:j] for i in range(len(other) + 1) for j in range(i, len(other) + 1)]
        assert edits(one, other, anywhere=True) == min(plain(one, passage) for passage in passages)


def put(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_planted_questions_are_found(tmp_path: Path) -> None:
    """Long and short ones, in two scripts, as they are, edited by a fifth of their words (short ones mistyped), inside
    other text, and asked with other rows around; other questions and the same words in another order are not."""
    draw = random.Random(4)
    asked = [question(draw, n, han) for n in (4, 5, 8, 12, 25, 60) for han in (False, True) for _ in range(40)]
    path = put(tmp_path / "eval.jsonl", [{"question": q} for q in asked])
    found = Decontaminator(Decontamination(), {}, [path])

    def holds(text: str) -> bool:
        return bool(found.match(texts({"prompt": "Tell me.", "completion": text})))

    planted = [q for q in asked] + [f"Question: {q.lower()}\nAnswer:" for q in asked]
    planted += [edited(draw, q, 0.2) if len(words(q)) >= 8 else mistyped(draw, q) for q in asked]
    planted += [f"It was asked then: {q} Nobody knew." for q in asked if len(words(q)) >= 8]
    missed = [text for text in planted if not holds(text)]
    assert len(missed) <= 0.01 * len(planted)
    others = [question(draw, n, han) for n in (4, 5, 8, 12, 25, 60) for han in (False, True) for _ in range(40)]
    others += ["".join(reversed(q)) for q in asked if q.endswith("？")]
    assert not [text for text in others if holds(text)]


def test_numbers_tell_short_questions_apart(tmp_path: Path) -> None:
    path = put(tmp_path / "eval.jsonl", [{"question": "What is 13 plus 4?"}, {"question": "Hi"}])
    found = Decontaminator(Decontamination(), {}, [path])
    assert found.match(texts({"prompt": "what is 13 plus 4", "completion": "17"}))
    assert found.match(texts({"prompt": "What is 13 pluss 4?", "completion": "17"}))
    assert not found.match(texts({"prompt": "What is 13 plus 5?", "completion": "18"}))
    assert not found.match(texts({"prompt": "Hi", "completion": "Hello!"}))  # too short to mean anything
    with pytest.raises(InputError, match="its 1 questions have fewer than 3 words"):
        Decontaminator(Decontamination(), {}, [put(tmp_path / "short.jsonl", [{"question": "Hi"}])])
    with pytest.raises(InputError, match="no row asks anything"):
        Decontaminator(Decontamination(), {}, [put(tmp_path / "none.jsonl", [{"idea": "Hi"}])])


@pytest.mark.parametrize(
    ("asked", "row"),
    [
        ("What does HIV stand for?", "What does BATNA stand for?"),
        ("Who wrote the play Hamlet?", "Who wrote the play Faust?"),
        ("谁写了红楼梦？", "谁写了西游记？"),
    ],
)
def test_one_word_makes_another_question_of_a_short_one(tmp_path: Path, asked: str, row: str) -> None:
    """Negative control: in a long one it does not."""
    more = " Say why you think so." * 4
    path = put(tmp_path / "eval.jsonl", [{"question": asked}, {"question": asked + more}])
    found = Decontaminator(Decontamination(), {}, [path])
    assert not found.match(texts({"prompt": row, "completion": "It is."}))
    assert "eval.jsonl:1" in found.match(texts({"prompt": asked.lower(), "completion": "It is."}))
    assert "eval.jsonl:2" in found.match(
        texts({"prompt": f"{row} {'Say why you think so. ' * 4}", "completion": "It."})
    )


def test_what_is_judged_is_what_is_learnt() -> None:
    """A bad rejected answer is meant; a bad chosen one is not. So with labels, and with what a user says."""
    bad = "buy now " * 60
    cleaner = Cleaner(Cleaning(repair=False), {}, ())

    def why(row: dict[str, object]) -> str:
        return cleaner._why_removed(row, texts(row))

    assert why({"prompt": "a", "chosen": bad, "rejected": "b"}) == "rule gopher_top_runs"
    assert not why({"prompt": "a", "chosen": "b", "rejected": bad})
    assert why({"prompt": "a", "completion": bad, "label": True}) and not why(
        {"prompt": "a", "completion": bad, "label": False}
    )
    said = [{"role": "user", "content": bad}, {"role": "assistant", "content": "b"}]
    assert not why({"messages": said}) and why({"messages": [*said, {"role": "assistant", "content": bad}]})
    assert not why({"messages": [*said, {"role": "assistant", "content": bad, "weight": 0}]})
