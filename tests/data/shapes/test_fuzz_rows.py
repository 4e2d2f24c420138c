"""Rows and files that are broken at random: each is read or refused in one sentence, and no row is lost without being
counted."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.data import collect, formats
from align.data.counts import LeftOut
from align.data.shapes import messages
from align.ground.errors import InputError

READERS = (formats.read_conversations, formats.read_preferences, formats.read_prompts, formats.read_texts)
ROWS: list[dict[str, Any]] = [
    {"prompt": "What is 3?", "completion": "Three.", "chosen": "Three.", "rejected": "Four.", "text": "Three is 3."},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "text": "t"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"instruction": "a", "input": "i", "output": "b", "history": [["x", "y"]]},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
]
KEYS = [
    *(key for row in ROWS for key in row),
    *formats.SYSTEM,
    *messages.REASONING,
    "tools",
    "weight",
    "label",
    "winner",
    "rank",
    "score_chosen",
    "score_rejected",
    "margin",
    "chosen_cut",
    "",
    "id",
]
MESSAGE = {"role": "assistant", "content": "x"}
VALUES: list[Any] = [
    None,
    "",
    0,
    1e400,
    True,
    False,
    [],
    {},
    "x",
    "\ud800",
    "\x00",
    [[]],
    [{}],
    [1],
    {"a": 1},
    9**999,
    "[1,2",
    "{'a':",
    "((((",
    "[[" * 50,
    [{"role": "user"}],
    [{"role": ["x"], "content": "y"}],
    [{"role": {}, "content": {}}],
    [{"type": "text"}],
    [{"from": "gpt", "value": 5}],
    [{"role": "function_call", "content": 5}],
    *(
        [{**MESSAGE, key: value}]
        for key in ("tool_calls", "function_call", "weight", "train", "name", "thinking")
        for value in (5, "{", [0], {})
    ),
]
BROKEN = (b"\x00", b"\xff", b"\xef\xbb\xbf", b'"', b"[", b"}", b"\r", b"NaN", b",", b";;")


def broken_row(draw: random.Random) -> dict[str, Any]:
    row = dict(draw.choice(ROWS))
    return row | {draw.choice(KEYS): draw.choice(VALUES) for _ in range(draw.choice((0, 1, 1, 2, 3)))}


def content(draw: random.Random, rows: list[dict[str, Any]], kind: str) -> bytes:
    if kind in ("csv", "tsv"):
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), delimiter=draw.choice(",;\t|"), extrasaction="ignore")
        writer.writeheader()
        writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows)
        return table.getvalue().encode("utf-8", "surrogatepass")
    text = {"json": json.dumps(rows, indent=1), "data.json": json.dumps({"data": rows})}.get(
        kind, "\n".join(map(json.dumps, rows))
    )
    return text.encode()


def broken_file(draw: random.Random) -> Path:
    kind = draw.choice(("jsonl", "json", "data.json", "csv", "tsv", "txt", "jsonl.gz"))
    raw = bytearray(content(draw, [broken_row(draw) for _ in range(draw.choice((1, 3, 6)))], kind))
    for _ in range(draw.choice((0, 0, 1, 3))):
        at = draw.randrange(len(raw) + 1)
        raw[at : at + draw.choice((0, 1, 9))] = draw.choice(BROKEN)
    packed = gzip.compress(bytes(raw)) if kind.endswith("gz") else bytes(raw)
    path = Path(f"rows.{kind}")
    path.write_bytes(packed[: draw.randrange(len(packed) + 1)] if draw.random() < 0.1 else packed)
    return path


def fuzz(files: int, seed: int) -> tuple[int, int, list[str]]:
    """(files that were read, refusals, what went wrong)."""
    draw, read, refused, wrong = random.Random(seed), 0, 0, list[str]()
    for number in range(files):
        path = broken_file(draw)
        for reader in READERS:
            for bad_rows in ("error", "drop"):
                try:
                    records = reader(path, bad_rows)  # type: ignore[arg-type]
                    read += 1
                    if len(records) + records.dropped.total() != records.rows:
                        wrong.append(f"{number}: {reader.kind} lost rows")
                except InputError as error:
                    refused += 1
                    if not str(error).startswith(str(path)):
                        wrong.append(f"{number}: no place: {error}")
                except Exception as error:
                    wrong.append(f"{number}: {reader.kind}: {type(error).__name__}: {error}")
    return read, refused, wrong


def test_broken_rows_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    read, refused, wrong = fuzz(150, seed=5)
    assert wrong == [] and read > 200 and refused > 500


@pytest.mark.parametrize(
    ("owner", "name", "fragile", "found"),
    [
        (collect, "put_aside", lambda where, row, kind: row["q"], "KeyError"),
        (LeftOut, "bad", lambda self, where, error: None, "lost rows"),
    ],
)
def test_what_goes_wrong_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, fragile: Callable[..., Any], found: str
) -> None:
    """Negative control: a parser that breaks, and rows that are left out uncounted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(owner, name, fragile)
    assert any(found in line for line in fuzz(30, seed=5)[2])
