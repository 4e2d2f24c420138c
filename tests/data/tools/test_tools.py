"""What `align data` finds, by counting in files that we made so; what it writes reads as the same records."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from align.data.formats import (
    read_conversations,
    read_preferences,
    read_prompts,
    read_texts,
)
from align.data.judged import read_labelled, read_steps
from align.data.records import Record
from align.data.tools.canonical import as_line
from align.data.tools.findings import findings, mojibake, plot, sizes
from align.data.tools.kinds import ReadAs, kind_of
from align.data.tools.mixing import counts_for, drawn
from align.ground.errors import InputError

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}
ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": [
        {"prompt": "Hi", "completion": "Hello!"},
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "weight": 0},
                {"role": "user", "content": "c"},
                {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
            ],
            "tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}],
        },
    ],
    "pairs": [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "margin": 0.5, "rejected_cut": True},
        {"prompt": "Hi", "responses": ["a", "b", "c"], "scores": [1, 2, 3]},
    ],
    "labelled": [{"prompt": "Hi", "completion": "Hello!", "label": False}],
    "steps": [{"prompt": "3 + 4 + 5?", "completions": ["3 + 4 is 7.", "7 + 5 is 13."], "labels": [True, False]}],
    "prompts": [{"prompt": "Hi", "answer": 7}, {"messages": [{"role": "user", "content": "Hi"}]}],
    "texts": [{"text": "Once upon a time سلام"}],
}
READ: dict[str, Any] = {
    "sft": read_conversations,
    "pairs": read_preferences,
    "labelled": read_labelled(),
    "steps": read_steps("\n"),
    "prompts": read_prompts,
    "texts": read_texts,
}


def write(path: Path, records: Iterable[Record]) -> None:
    path.write_text("".join(map(as_line, records)), encoding="utf-8")


def kind(path: Path) -> str:
    """What a file is taken for."""
    return kind_of(ReadAs(None)(path, "drop")[0])


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ROWS)
def test_what_is_rewritten_reads_as_the_same_records(tmp_path: Path, kind: str) -> None:
    given = put(tmp_path / "given.jsonl", ROWS[kind])
    records = ReadAs(None)(given)
    assert kind_of(records[0]) == kind and records == READ[kind](given)
    write(tmp_path / "ours.jsonl", records)
    assert READ[kind](tmp_path / "ours.jsonl") == records


GARBLED = {"prompt": "Hi", "completion": "CafÃ©"}
TIE = {"prompt": "Hi", "chosen": "a", "rejected": "b", "tie": True}


@pytest.mark.parametrize(
    ("good", "bad", "meant"),
    [
        ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, {"prompt": "Hi", "chosen": "a", "rejected": "a"}, "pairs"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, TIE, "pairs"),
        ({"prompt": "Hi", "completion": "a"}, {"prompt": "Hi", "completion": ""}, "sft"),
        ({"prompt": "Hi", "completion": "a", "label": 1}, {"prompt": "Hi", "completion": "a", "label": 2}, "labelled"),
        ({"prompt": "Hi"}, {"prompt": "Hi", "completion": "a"}, "prompts"),
    ],
)
def test_few_rows_of_another_kind_do_not_make_a_file_one(
    tmp_path: Path, good: dict[str, Any], bad: dict[str, Any], meant: str
) -> None:
    """Each bad row can be read as another kind, of which the file then held more; negative control: with most of them
    such, it is no longer the kind of the good one."""
    assert kind(put(tmp_path / "few.jsonl", [good] * 4 + [bad])) == meant
    assert kind(put(tmp_path / "most.jsonl", [good] + [bad] * 4)) != meant


def test_where_every_row_is_bad_it_is_told_why(tmp_path: Path) -> None:
    for rows, why in (
        ([{"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": "big"}], '"margin" is the text "big"'),
        ([{"prompt": "Hi", "completion": None}], '"completion" is null'),
    ):
        with pytest.raises(InputError, match=why):
            ReadAs(None)(put(tmp_path / f"{len(why)}.jsonl", rows), "drop")
    prompts = put(tmp_path / "p.jsonl", [{"prompt": "Hi", "chosen": "a", "level": "big"}])
    assert kind(prompts) == "prompts"


def test_earlier_answers_that_are_only_read_stay_so(tmp_path: Path) -> None:
    """History is read and not learnt, which `weight: 0` says in a list of messages."""
    given = put(tmp_path / "g.jsonl", [{"prompt": "c", "history": [["a", "b"]], "completion": "d"}])
    write(tmp_path / "ours.jsonl", read_conversations(given))
    (row,) = map(json.loads, (tmp_path / "ours.jsonl").read_text().splitlines())
    assert [m.get("weight") for m in row["messages"]] == [None, 0, None, None]


def test_findings_count_what_is_there(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "chosen": "Hello!", "rejected": "No"}] * 3
    rows += [{"prompt": "سلام", "chosen": "a", "rejected": "bb"}, {"prompt": "CafÃ©", "chosen": "cc", "rejected": "d"}]
    found = {f.name: f for f in findings(read_preferences(put(tmp_path / "p.jsonl", rows)))}
    assert found["duplicates"].value == 2 and found["prompts"].value == 3 and found["turns"].value == {1: 5}
    assert found["length"].value == 4 / 5 and found["garbled"].value == 1 and "p.jsonl:5" in found["garbled"].text
    assert found["scripts"].value["Arabic"] == pytest.approx(4 / sum(len("HiHello!No") - 1 for _ in range(3)), abs=1)
    answer = {f.name: f for f in findings(read_conversations(put(tmp_path / "a.jsonl", [GARBLED])))}
    assert answer["garbled"].value == 1  # in the answer alone
    blank = [{"prompt": said, "completion": "Yo."} for said in ("", "  ", "Hi")]
    asked = {f.name: f.text for f in findings(read_conversations(put(tmp_path / "b.jsonl", blank)))}
    assert asked["prompts"] == "3 different ones; 2 questions are empty" and "empty" not in answer["prompts"].text
    labels = {f.name: f for f in findings(read_labelled()(put(tmp_path / "l.jsonl", ROWS["labelled"])))}
    assert labels["labels"].value == 0 and labels["duplicates"].value == 0
    steps = {f.name: f for f in findings(read_steps("\n")(put(tmp_path / "s.jsonl", ROWS["steps"])))}
    assert steps["steps"].text == "2, 1 of them right" and "labels" not in steps


@pytest.mark.parametrize(
    "text", ["café", "Ünïcödé ñandú", "naïve façade – “quotes”", "سلام", "你好", "😀", "ÃÂ plain caps"]
)
def test_what_is_garbled(text: str) -> None:
    """UTF-8 read as cp1252, made so here; as it stands it is not."""
    assert mojibake(text) == ""
    try:
        broken = text.encode().decode("cp1252")
    except UnicodeDecodeError:
        pytest.skip("cp1252 has no such bytes")
    assert mojibake(broken) or text.isascii()
    assert mojibake("half \ufffd")


def test_a_plot_has_a_block_for_each_share() -> None:
    assert plot([1, 1, 1, 1, 10], 2) == "█▂" and plot([5], 3) == "█  "
    assert sizes([1, 2, 3, 4, 100], "tokens", 50).value == {"median": 3, "p95": 100, "max": 100}
    assert "1 beyond the context of 50" in sizes([1, 2, 3, 4, 100], "tokens", 50).text


def test_shares_are_exact() -> None:
    counts = counts_for({"a": 100, "b": 100}, {"a": 7, "b": 3}, 100)
    assert counts == {"a": 70, "b": 30}
    assert sum(counts_for({"a": 9, "b": 9, "c": 9}, {"a": 1, "b": 1, "c": 1}, 10).values()) == 10
    most = counts_for({"a": 100, "b": 10}, {"a": 1, "b": 1}, None)
    assert most == {"a": 10, "b": 10}
    for sizes_, weights, rows, message in (
        ({"a": 5, "b": 5}, {"a": 1, "b": 1}, 11, "At most 10 rows"),
        ({"a": 5}, {"a": 0.0}, None, "expected a number above 0"),
        ({"a": 5}, {"a": float("nan")}, None, "expected a number above 0"),
    ):
        with pytest.raises(InputError, match=message):
            counts_for(sizes_, weights, rows)
    assert drawn(100, 10, random.Random(1)) == drawn(100, 10, random.Random(1)) != drawn(100, 10, random.Random(2))
    assert len(set(drawn(100, 100, random.Random(1)))) == 100
