"""`bad_rows: drop`: what cannot be used is left out, counted by the reason and shown; what is left is what was
right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.data.counts import LeftOut
from align.data.formats import read_conversations, read_preferences, read_prompts, read_texts
from align.ground.errors import InputError

GOOD = [{"prompt": f"What is {i}?", "completion": f"{i}."} for i in range(4)]
BAD = [
    '{"prompt": "cut sho',
    '{"prompt": "a", "completion": ""}',
    '{"prompt": "b", "completion": " "}',
    '{"prompt": "c", "prompt": "d", "completion": "e"}',
    '{"prompt": "a", "completion": "b", "label": false}',
    "[1]",
    '{"prompt": ' + "[" * 5000 + "]" * 5000 + "}",
]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)

    def write(*rows: Any, name: str = "rows.jsonl") -> str:
        lines = (row if isinstance(row, str | bytes) else json.dumps(row) for row in rows)
        Path(name).write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
        return name

    return write


def test_bad_rows_are_left_out_counted_and_shown(write: Callable[..., str]) -> None:
    mixed = [row for pair in zip(GOOD, BAD, strict=False) for row in pair] + BAD[4:] + [b'{"prompt": "\xff"}']
    records = read_conversations(write(*mixed), bad_rows="drop")
    assert records == read_conversations(write(*GOOD))
    assert records.dropped == {
        "bad rows: not JSON: Unterminated string starting at": 1,
        'bad rows: "completion" is empty': 2,
        "bad rows: the key 'prompt' stands twice in one object": 1,
        'bad rows: has "label", but answers with such a label are good or bad ones, and all are learnt here': 1,
        "bad rows: found a list": 1,
        "bad rows: nested too deeply": 1,
        "bad rows: byte 0xff is not UTF-8": 1,
    }
    assert records.dropped.examples == (
        "rows.jsonl:2: not JSON: Unterminated string starting at (column 12). Expected one object on the line.",
        'rows.jsonl:4: "completion" is empty. Remove the row, or give it text.',
    )
    assert str(records).count("\n  left out: ") == 2
    with pytest.raises(InputError, match=r"^rows.jsonl:2: not JSON"):  # negative control: the default stops there
        read_conversations(write(*mixed))
    with pytest.raises(InputError, match="every row was left out"):
        read_conversations(write(*BAD), bad_rows="drop")


def test_reasons_name_types_and_examples_differ(write: Callable[..., str]) -> None:
    """A number of a row's own is in no reason; examples are of two reasons where there are two."""
    rows: list[Any] = [{"prompt": "a", "completion": value} for value in (7, -3.5, 12, None)]
    dropped = read_conversations(write(*GOOD, *rows), bad_rows="drop").dropped
    assert dropped == {'bad rows: "completion" is a number': 3, 'bad rows: "completion" is null': 1}
    assert dropped.counted == '3 bad rows: "completion" is a number, 1 bad row: "completion" is null'
    assert ["is 7" in dropped.examples[0], "is null" in dropped.examples[1]] == [True, True]
    alike = read_conversations(write(*GOOD, *rows[:3]), bad_rows="drop").dropped  # negative control: one reason
    assert "is 7" in alike.examples[0] and "is -3.5" in alike.examples[1]
    assert list(dropped.figures("data")) == ["data/bad_rows_completion_is_a_number", "data/bad_rows_completion_is_null"]


def test_a_broken_first_line_is_one_bad_row(write: Callable[..., str]) -> None:
    assert len(read_conversations(write(BAD[0], *GOOD), bad_rows="drop")) == 4
    with pytest.raises(InputError, match=r"^rows.jsonl:1: "):
        read_conversations(write(BAD[0], *GOOD))


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (read_preferences, {"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}),
        (read_prompts, {"prompt": "a"}, {"prompt": 3}),
        (read_texts, {"text": "a"}, {"text": ["a"]}),
    ],
)
def test_of_every_kind(
    write: Callable[..., str], read: Callable[..., Any], good: dict[str, Any], bad: dict[str, Any]
) -> None:
    records = read(write(bad, good, bad, good), bad_rows="drop")
    assert len(records) == 2 and records.dropped.total() == 2
    with pytest.raises(InputError, match=r"^rows.jsonl:1: "):
        read(write(bad, good))


def test_files_that_break_off_are_errors_all_the_same(write: Callable[..., str]) -> None:
    """There is no telling what they held."""
    with pytest.raises(InputError, match="unexpected end of data"):
        read_conversations(write('prompt,completion\na,b\nc,"d', name="rows.csv"), bad_rows="drop")
    with pytest.raises(InputError, match="not JSON"):
        read_conversations(write('[{"prompt": "a", "completion": "b"},', name="rows.json"), bad_rows="drop")
    assert (
        read_conversations(write("prompt,completion\na,b\nc\n", name="rows.csv"), bad_rows="drop").dropped.total() == 1
    )


def test_the_first_and_the_last_rows_alone(write: Callable[..., str]) -> None:
    rows = [{"prompt": str(i), "completion": "x"} for i in range(100)]
    path = write(*rows[:50], "no JSON", *rows[50:])
    looked = read_conversations(path, sample=10)
    assert [r.messages[0].content for r in looked] == [
        str(i) for i in (*range(10), *range(90, 100))
    ] and looked.rows == 101
    with pytest.raises(InputError, match=r":51: "):
        read_conversations(path)
    with pytest.raises(InputError, match=r":101: "):
        read_conversations(write(*rows, '{"prompt": "cut sho'), sample=10)


def test_reasons_without_end_are_counted_together() -> None:
    left = LeftOut()
    for i in range(100):
        left.bad(f"d:{i}", InputError(f"d:{i}: {'x' * i} is wrong. Mend it."))
    assert left.total() == 100 and len(left) == 21 and left["bad rows: other reasons"] == 80 and len(left.examples) == 2


def test_what_a_reason_quotes_of_rows_makes_none_of_its_own() -> None:
    """Negative control: single words, such as keys, do."""
    left = LeftOut()
    for i, said in enumerate(("'to rob a house. Don\\'t'", "'a; b'")):
        left.bad(f"d:{i}", InputError(f'd:{i}: sampled after {said}, but "key{i}" is set. Mend it.'))
    assert list(left) == [
        'bad rows: sampled after …, but "key0" is set',
        'bad rows: sampled after …, but "key1" is set',
    ]
