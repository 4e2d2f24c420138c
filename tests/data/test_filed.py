"""A list that moves to a file is the list that it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.data import filed
from align.data.filed import FiledList
from align.data.formats import read_conversations
from align.data.records import Message
from align.data.split import leave_out, opening, openings, split_by_prompt


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filed, "HELD", 10)
    monkeypatch.setattr(filed, "BLOCK", 4)


def test_it_is_the_list_that_it_was(few: None) -> None:
    items = [(Message("user", str(i)), i) for i in range(31)]
    lazy: FiledList[tuple[Message, int]] = FiledList()
    for n, item in enumerate(items):
        lazy.append(item)
        assert lazy.is_filed == (n >= 10) and len(lazy) == n + 1 and bool(lazy)
    assert lazy == items and [*lazy] == list(lazy) == items and sorted(lazy, key=str) == sorted(items, key=str)
    for at in (0, 3, 4, 30, -1, -31):
        assert lazy[at] == items[at]
    for cut in (slice(3, 9), slice(None), slice(-3, None), slice(20, 2, -3)):
        assert lazy[cut] == items[cut]
    places = [30, 2, 2, 7]
    picked = lazy.pick(places)
    assert picked == [items[i] for i in places] and picked.pick([1, 3]) == [items[2], items[7]]
    assert lazy != items[:-1] and lazy != [*items[:-1], items[0]] and picked != items[:4]
    for wrong in (31, -32):
        with pytest.raises(IndexError):
            lazy[wrong]


def test_records_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read, divided and held out as those that are held in memory."""
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"What is {i % 23}?", "completion": f"{i}."} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = read_conversations(path)
    monkeypatch.setattr(filed, "HELD", 10)
    monkeypatch.setattr(filed, "BLOCK", 4)
    lazy = read_conversations(path)
    assert lazy.is_filed and not held.is_filed and lazy == held and lazy.told == held.told
    assert [r.where for r in lazy] == [r.where for r in held]
    assert split_by_prompt(lazy, 0.2) == split_by_prompt(held, 0.2) and leave_out(lazy, 0.3) == leave_out(held, 0.3)
    assert all(part.is_filed for part in split_by_prompt(lazy, 0.2) if isinstance(part, FiledList))
    assert [*openings(lazy)] == [opening(record) for record in held]
    train, _ = split_by_prompt(lazy, 0.2)
    assert [*openings(train)] == [opening(record) for record in train]
    lazy._file.open = (-1, [])  # type: ignore[union-attr]
    monkeypatch.setattr(filed.pickle, "loads", refused)
    assert len(split_by_prompt(lazy, 0.2)[0]) == len(train) and leave_out(lazy, 0.3)  # no record is read for it
    with pytest.raises(AssertionError):  # negative control
        list(lazy)


def refused(content: bytes) -> object:
    raise AssertionError("a record was read")
