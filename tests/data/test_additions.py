"""What docs/adding.md says of data is true: a dialect of rows and a file format each take one file and one line."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from align.data.dialects import table
from align.data.files import tables
from align.data.files.sources import Table, as_they_are
from align.data.formats import read_pairs, read_preferences, read_prompts
from align.data.records import Message, Preference, Prompt, Row
from align.ground.errors import InputError

# ---- a dialect: rows much as those of PKU-SafeRLHF -------------------------------------------------------------------


def as_ours(where: str, row: Row) -> Row:
    """{"prompt": "Hi", "reply_0": "What?", "reply_1": "Hello!", "better_reply": 1}"""
    answers = ("reply_0", "reply_1")
    better = row.get("better_reply")
    if not row.keys() >= {*answers} or better not in (0, 1):
        return row
    chosen, rejected = (row[answers[better]], row[answers[1 - better]])
    others = {key: value for key, value in row.items() if key not in (*answers, "better_reply")}
    return {**others, "chosen": chosen, "rejected": rejected}


ROW = '{"prompt": "Hi", "reply_0": "What?", "reply_1": "Hello!", "better_reply": 1}\n'


def test_a_dialect_is_one_function_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pku.jsonl"
    path.write_text(ROW + '{"prompt": "3 + 4?", "chosen": "7", "rejected": "8"}\n')
    with pytest.raises(InputError, match=r'pku.jsonl:1: "chosen" and "rejected" are missing'):
        read_preferences(path)  # negative control: without the line
    monkeypatch.setitem(table.DIALECTS, "replies", table.Dialect(as_ours))
    user, said = (lambda text: (Message("user", text),)), (lambda text: (Message("assistant", text),))
    records = read_preferences(path)
    assert records == [
        Preference(user("Hi"), said("Hello!"), said("What?")),
        Preference(user("3 + 4?"), said("7"), said("8")),
    ]
    assert records.shape == "JSON lines, rows of replies (prompt, chosen, rejected)"
    assert [prompt.messages for prompt in read_prompts(path)] == [user("Hi"), user("3 + 4?")]


def test_what_openai_takes_is_read_as_ours(tmp_path: Path) -> None:
    """The dialect that there is reads as the same row in keys of ours does; what it cannot say is refused."""
    theirs, ours = tmp_path / "theirs.jsonl", tmp_path / "ours.jsonl"
    user, better, worse = (
        '[{"role": "user", "content": "Hi"}]',
        '[{"role": "assistant", "content": "Hello!"}]',
        '[{"role": "assistant", "content": "What?"}]',
    )
    row = f'"preferred_output": {better}, "non_preferred_output": {worse}}}\n'
    theirs.write_text(f'{{"input": {{"messages": {user}, "tools": [], "parallel_tool_calls": null}}, {row}')
    ours.write_text(f'{{"messages": {user}, "chosen": {better}, "rejected": {worse}}}\n')
    assert read_pairs(theirs) == read_pairs(ours) != []
    theirs.write_text(f'{{"input": {{"messages": {user}, "parallel_tool_calls": true}}, {row}')
    with pytest.raises(InputError, match=r'theirs.jsonl:1: "input" has "parallel_tool_calls", which is not read'):
        read_pairs(theirs)
    theirs.write_text(f'{{"messages": {user}, "input": {{"messages": {user}}}, {row}')
    with pytest.raises(InputError, match=r'theirs.jsonl:1: has "messages" beside "input"'):
        read_pairs(theirs)


# ---- a file format: tables of SQLite ---------------------------------------------------------------------------------


def sqlite_rows(path: Path) -> Table:
    def rows() -> Iterator[tuple[str, Row]]:
        database = sqlite3.connect(path)
        try:
            found = database.execute("select * from rows")
            names = [column[0] for column in found.description]
            for number, values in enumerate(found, 1):
                yield f"{path} row {number}", dict(zip(names, values, strict=True))
        finally:
            database.close()

    return Table("SQLite", as_they_are(rows()))


def write_sqlite(path: Path, rows: list[tuple[str | None, str]]) -> None:
    database = sqlite3.connect(path)
    database.execute("create table rows (prompt, answer)")
    database.executemany("insert into rows values (?, ?)", rows)
    database.commit()
    database.close()


def test_a_file_format_is_one_function_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prompts.sqlite"
    write_sqlite(path, [("Hi", "a"), ("3 + 4?", "7")])
    with pytest.raises(InputError, match="cannot tell the format from its name"):
        read_prompts(path)  # negative control: without the line
    monkeypatch.setitem(tables.FORMATS, ".sqlite", sqlite_rows)
    records = read_prompts(path)
    assert records.form == "SQLite"
    assert records == [
        Prompt((Message("user", "Hi"),), {"answer": "a"}),
        Prompt((Message("user", "3 + 4?"),), {"answer": "7"}),
    ]
    # what every format has: bad rows by their place, several files by a pattern, a look at both ends
    write_sqlite(tmp_path / "second.sqlite", [(None, "a"), ("Bye", "b")])
    with pytest.raises(InputError, match=r'second.sqlite row 1: "prompt" is null; expected text'):
        read_prompts(tmp_path / "*.sqlite")
    both = read_prompts(tmp_path / "*.sqlite", "drop", sample=1)
    assert both.rows == 4 and [prompt.columns["answer"] for prompt in both] == ["a", "b"]
