"""Files as people have them, against rows written by hand; what cannot be read is one sentence."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.data.files.sources import data_digest
from align.data.formats import Records, read_conversations, read_prompts, read_texts
from align.data.records import Conversation, Message, Text
from align.ground.errors import InputError

ROWS = [{"prompt": f"What is {i} plus 7?", "completion": f"It is {i + 7}."} for i in range(5)]
EXPECTED = [Conversation((Message("user", r["prompt"]), Message("assistant", r["completion"]))) for r in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(name: str, content: str | bytes, encoding: str = "utf-8") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return name


def zstandard(content: bytes) -> bytes:
    import pyarrow

    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as packed:
        packed.write(content)
    return bytes(out.getvalue())


def table(separator: str = ",", header: str = "prompt,completion", end: str = "\n") -> str:
    return end.join([header.replace(",", separator), *(separator.join(row.values()) for row in ROWS)]) + end


def refusal(read: Callable[[str], Records[Any]], path: str) -> str:
    with pytest.raises(InputError) as error:
        read(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("r.jsonl", LINES, "JSON lines"),
        ("r.jsonl", LINES.replace("\n", "\r\n\r\n"), "JSON lines"),
        ("r.jsonl", b"\xef\xbb\xbf" + LINES.encode(), "JSON lines"),
        ("r.jsonl", LINES.encode("utf-16"), "JSON lines, UTF-16"),
        ("r.jsonl", LINES.encode("utf-16-be"), "JSON lines, UTF-16"),
        ("r.json", LINES, "JSON lines"),
        ("r.jsonl", json.dumps(ROWS), "a JSON list"),
        ("r.json", json.dumps(ROWS, indent=2), "a JSON list"),
        ("r.json", "\n".join(json.dumps(row, indent=2) for row in ROWS), "JSON objects one after the other"),
        ("r.jsonl", "".join(map(json.dumps, ROWS)), "JSON objects one after the other"),
        ("r.json", json.dumps({"data": ROWS}), 'the list under "data" of a JSON object'),
        (
            "r.json",
            json.dumps({"version": 1, "data": ROWS}, indent=1),
            'the list under "data" of a JSON object (not used: version)',
        ),
        ("r.csv", table(), "CSV"),
        ("r.csv", "\ufeff" + table(";"), "CSV with semicolons"),
        ("r.csv", table("\t").encode("utf-16"), "a table with tabs, UTF-16"),
        ("r.tsv", table("\t", end="\r\n"), "a table with tabs"),
        (
            "r.csv",
            table(header="Prompt, Completion "),
            "CSV, the columns 'Prompt' as prompt, 'Completion' as completion",
        ),
        ("r.csv", table().replace("\n", ",\n"), "CSV"),  # a comma after each row
        ("r.jsonl.gz", gzip.compress(LINES.encode()), "JSON lines"),
        ("r.jsonl.bz2", bz2.compress(LINES.encode()), "JSON lines"),
        ("r.csv.xz", lzma.compress(table().encode()), "CSV"),
        ("r.jsonl.zst", zstandard(LINES.encode()), "JSON lines"),
    ],
)
def test_one_set_of_rows_in_many_files(name: str, content: str | bytes, form: str) -> None:
    records = read_conversations(put(name, content))
    assert records == EXPECTED != EXPECTED[1:] and records.form == form
    assert all(r.where.startswith(name) for r in records) and not records.dropped


def test_files_of_a_pattern_in_the_order_of_their_names() -> None:
    for i, row in enumerate(ROWS):
        put(f"shards/part-{i}.jsonl", json.dumps(row))
    records = read_conversations("shards/part-*.jsonl")
    assert (
        records == EXPECTED
        and records[3].where == "shards/part-3.jsonl:1"
        and records.form == "5 files, the first JSON lines"
    )
    digest = data_digest("shards/*.jsonl")
    assert digest == data_digest("shards/part-?.jsonl") != data_digest("shards/part-[0-3].jsonl")
    put("shards/part-2.jsonl", json.dumps(ROWS[0]))
    assert data_digest("shards/*.jsonl") != digest
    assert read_conversations("shards") == read_conversations("shards/*.jsonl")  # a folder of shards alone
    assert data_digest("shards") == data_digest("shards/*.jsonl")
    assert refusal(read_conversations, "shards/*.csv").startswith("shards/*.csv: no file matches this pattern.")
    for pattern in ("**x.jsonl", "shards/**x.jsonl"):
        assert f"{pattern}: " in refusal(read_conversations, pattern)
    put("[odd].jsonl", LINES)
    assert read_conversations("[odd].jsonl") == EXPECTED  # a file that is there is no pattern


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], "a folder with no data file."),
        (["README.md"], "a folder with no data file."),
        (["a.jsonl", "b.csv"], "a folder with files of several kinds (.csv, .jsonl)."),
        (["train-0.jsonl", "test-0.jsonl"], "a folder with the splits test, train."),
        (["train/0.jsonl", "validation/0.jsonl"], "a folder with the splits train, validation."),
    ],
)
def test_folders_that_are_no_one_set_of_shards(names: list[str], found: str) -> None:
    Path("shards").mkdir()
    for name in names:
        put(f"shards/{name}", LINES)
    assert refusal(read_conversations, "shards").startswith(f"shards: {found}")
    assert refusal(data_digest, "shards").startswith(f"shards: {found}")


def test_shards_below_a_folder_and_what_is_beside_them() -> None:
    put("shards/data/train-00000-of-00001.jsonl", LINES)
    put("shards/README.md", "not read")
    put("shards/.cache/old.jsonl", "not read")
    assert read_conversations("shards") == EXPECTED


def test_arrow_files_of_both_kinds() -> None:
    import pyarrow

    table = pyarrow.Table.from_pylist(ROWS)
    for name, write in (("s.arrow", pyarrow.ipc.new_stream), ("f.arrow", pyarrow.ipc.new_file)):
        with write(name, table.schema) as out:
            out.write_table(table)
        assert read_conversations(name) == EXPECTED
    put("none.arrow", "no Arrow")
    assert refusal(read_conversations, "none.arrow").startswith("none.arrow: not an Arrow file")


def test_spreadsheets_in_a_western_code_page() -> None:
    """cp1252 is said with a word to check it by; bytes of another script are refused, as is JSON, which is UTF-8."""
    records = read_conversations(
        put("r.csv", "prompt;completion\nWo liegt Zürich?;In der Schweiz – “dort”.\n", "cp1252")
    )
    assert (
        records[0].messages[0].content == "Wo liegt Zürich?"
        and records[0].messages[1].content == "In der Schweiz – “dort”."
    )
    assert records.form == "CSV with semicolons, cp1252 as it is no UTF-8 ('Zürich' stands in it)"
    assert refusal(read_conversations, put("r.csv", "prompt,completion\nПривет,да\n", "cp1251")) == (
        "r.csv:2: byte 0xcf is not UTF-8. Convert the file to UTF-8."
    )
    # UTF-8, one byte damaged
    assert "is not UTF-8" in refusal(read_conversations, put("r.csv", b"prompt,completion\ncaf\xc3\xa9,a\xff\n"))
    assert "byte 0xfc is not UTF-8" in refusal(
        read_conversations, put("r.jsonl", '{"prompt": "Zürich", "completion": "x"}', "cp1252")
    )


def test_a_column_without_a_name_is_called_by_its_number() -> None:
    """pandas writes its index so."""
    records = read_conversations(put("r.csv", ",prompt,completion,\n0,a,b,\n1,c,d,\n"))
    assert len(records) == 2 and str(records) == "2 records from CSV (prompt, completion); not used: unnamed_1"


def test_empty_rows_of_a_spreadsheet_are_counted() -> None:
    records = read_conversations(put("r.csv", table() + ",\n , \n\n"))
    assert records == EXPECTED and records.dropped == {"empty rows": 2}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "r.jsonl",
            '{"prompt": "a", "prompt": "c", "completion": "b"}',
            "r.jsonl:1: the key 'prompt' stands twice in one object.",
        ),
        (
            "r.json",
            '[{"messages": [{"role": "user", "role": "assistant"}]}]',
            "r.json:1: the key 'role' stands twice in one object.",
        ),
        ("r.csv", "prompt,Prompt\na,b\n", "r.csv:1: the header names 'prompt' twice."),
        (
            "r.csv",
            "prompt,completion\na,b,c\n",
            "r.csv:2: more fields than the header names, 3 for 2 (prompt, completion).",
        ),
        ("r.jsonl", "[" * 100_000, "r.jsonl:1: nested too deeply."),
        ("r.jsonl", '{"prompt": ' + "[" * 20_000 + "]" * 20_000 + "}", "r.jsonl:1: nested too deeply."),
        (
            "r.json",
            '{"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}',
            "r.json: holds the lists train, test. Write the one to read",
        ),
        (
            "r.jsonl.gz",
            gzip.compress(LINES.encode(), mtime=0)[:-9],
            "r.jsonl.gz: the .gz file is cut short. Copy or pack it again.",
        ),
        ("r.jsonl.gz", LINES, "r.jsonl.gz: the .gz file is not what its name says, or damaged (Not a gzipped file"),
        ("r.csv.xz", b"none" * 9, "r.csv.xz: the .xz file is not what its name says, or damaged"),
        ("r.csv.bz2", b"none", "r.csv.bz2: cannot be read (Invalid data stream)."),
        ("r.jsonl.zip", b"none", "r.jsonl.zip: cannot tell the format from its name."),
        ("r.jsonl.zst", b"none", "r.jsonl.zst: cannot be read ("),
        ("r.jsonl", b"\x00\x01\x02", "r.jsonl"),
        ("d/state.json", "no JSON", "d/state.json: is no JSON object, as `datasets` writes it"),
        (
            "d/state.json",
            '{"_data_files": [{"filename": "../r.arrow"}]}',
            "d: state.json names '../r.arrow' as data, and there is no such",
        ),
        ("d/dataset_dict.json", "[1]", "d/dataset_dict.json: is no JSON object"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "bytes",
)
def test_broken_files_are_one_sentence(name: str, content: str | bytes, message: str) -> None:
    put(name, content)
    for read in (read_conversations, read_prompts):
        assert refusal(read, "d" if name.startswith("d/") else name).startswith(message)


def test_what_cannot_be_read_twice() -> None:
    os.mkfifo("pipe.jsonl")
    for path in ("pipe.jsonl", "/dev/null"):
        assert "is a pipe or a device, which can be read once only" in refusal(read_conversations, path)
        assert "is a pipe or a device" in refusal(data_digest, path)  # type: ignore[arg-type]


def test_parquet_with_two_columns_of_one_name() -> None:
    import pyarrow
    import pyarrow.parquet

    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text", "text"]), "r.parquet")
    assert refusal(read_texts, "r.parquet") == "r.parquet: two columns are called 'text'. Rename or remove one."
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text", "other"]), "r.parquet")
    assert read_texts("r.parquet") == [Text("a")]


def test_parquet_cells_that_python_has_none_for() -> None:
    import pyarrow
    import pyarrow.parquet

    for kind, value in ((pyarrow.date32(), 2**31 - 1), (pyarrow.duration("s"), 2**62)):
        whole = pyarrow.int32() if kind == pyarrow.date32() else pyarrow.int64()
        odd = pyarrow.array([value], whole).cast(kind)
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "odd": odd}), "r.parquet")
        for bad_rows in ("error", "drop"):
            with pytest.raises(InputError, match=r"^r.parquet: the column 'odd' \(.*\) cannot be read: "):
                read_texts("r.parquet", bad_rows)


def test_only_line_ends_end_a_line_of_text() -> None:
    """Form feed, U+2028, U+0085 and the like stand in documents; \\n, \\r\\n and \\r end lines."""
    text = "page one\n\x0cpage two\n\nline one\u2028two\x85three\x0bfour\r\nfive\rsix\n"
    assert read_texts(put("r.txt", text)) == [
        Text("page one\n\x0cpage two"),
        Text("line one\u2028two\x85three\x0bfour\nfive\nsix"),
    ]


def test_a_folder_that_is_not_seen_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that there is, and a folder below that cannot be listed; what is hidden is passed over."""
    assert refusal(read_conversations, "/").startswith("/: is the whole file system. Name the file")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/part.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    (tmp_path / ".b").mkdir()
    (tmp_path / ".b/part.csv").write_text("x")
    assert len(read_conversations(tmp_path)) == 1
    listed = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    said = f"{tmp_path / 'a'}: the folder cannot be listed (Permission denied), so what it holds would be missing."
    assert refusal(read_conversations, tmp_path).startswith(said)
