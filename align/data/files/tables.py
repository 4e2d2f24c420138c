"""Rows of tables: CSV as spreadsheets write it, Parquet, and folders that `datasets` wrote; and documents of plain
texts."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

from align.data.files.json_rows import json_rows
from align.data.files.sources import DATASET, PACKED, Row, Table, data_files, explained, opened, suffix, whole_text
from align.data.shapes.keys import KNOWN, plain_name
from align.ground.errors import InputError

END_OF_TEXT = "<|endoftext|>"
SEPARATORS = {",": "CSV", ";": "CSV with semicolons", "\t": "a table with tabs", "|": "CSV with |"}
UNNAMED = "unnamed_"
NOT_WESTERN = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\x80-\xff]{3}")
"""A letter in UTF-8, or three characters beyond ASCII in a row: no Western word in cp1252 holds them."""


def read_rows(path: str | Path) -> Table:
    """The rows of a data set: of a file, a folder, or the files that a pattern matches, one after the other.

    Raises: InputError for a missing or unreadable one; so do the rows as they are read, naming the line.
    """
    return _chained(path, _reader)


def read_documents(path: str | Path) -> Table:
    """The same, where a .txt file holds documents."""
    return _chained(path, lambda file: text_rows if suffix(file) == ".txt" else _reader(file))


def _chained(path: str | Path, reader: Callable[[Path], Callable[[Path], Table]]) -> Table:
    files = data_files(path)
    readers = [reader(file) for file in files]
    first = readers[0](files[0])
    if len(files) == 1:
        return first
    rest = (read(file) for read, file in zip(readers[1:], files[1:], strict=True))
    rows = ((where, (table.parse, row)) for table in itertools.chain([first], rest) for where, row in table.rows)
    return Table(f"{len(files):,} files, the first {first.form}", rows, lambda where, both: both[0](where, both[1]))


def _reader(path: Path) -> Callable[[Path], Table]:
    """What reads a file of this name. Raises: InputError."""
    if path.is_dir():
        return dataset_rows
    readers: dict[str, Callable[[Path], Table]] = {
        **dict.fromkeys((".jsonl", ".ndjson", ".json"), json_rows),
        **dict.fromkeys((".csv", ".tsv"), csv_rows),
        ".parquet": parquet_rows,
    }
    kind = suffix(path)
    if kind in readers:
        return readers[kind]
    remedy = {
        ".txt": " A .txt file holds texts, for pretrain with `learn: all` alone.",
        **dict.fromkeys((".zst", ".zip", ".7z", ".tar", ".tgz"), " Unpack it first."),
    }.get(path.suffix.lower() if kind != ".txt" else kind, "")
    raise InputError(
        f"{path}: cannot tell the format from its name. Expected {', '.join(readers)} (each also with "
        f"{', '.join(PACKED)}), or a folder of `datasets`.{remedy}"
    )


# ---- CSV -------------------------------------------------------------------------------------------------------------


def csv_rows(path: Path) -> Table:
    """Fields apart by comma, semicolon, tab or bar, whichever the header has most of. Raises: InputError."""
    text, words = _spreadsheet_text(path)
    csv.field_size_limit(1 << 30)
    top = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    separator = max(SEPARATORS, key=lambda s: (top.count(s), s == "\t" and suffix(path) == ".tsv"))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows = _lines_of(path, reader)
    where, given = next(rows, (f"{path}:1", []))
    header = _header(where, given)
    renamed = [
        f"{old.strip()!r} as {new}" for old, new in zip(given, header, strict=True) if old.strip() not in ("", new)
    ]
    words += f", the columns {', '.join(renamed)}" if renamed else ""
    return Table(f"{SEPARATORS[separator]}{words}", rows, partial(_record, header))


def _spreadsheet_text(path: Path) -> tuple[str, str]:
    """(text, its encoding in words): what is no UTF-8 is read as cp1252, which Western spreadsheets write.

    Raises: InputError where it cannot be that.
    """
    try:
        return whole_text(path)
    except InputError:
        with explained(path), opened(path) as file:
            raw = file.read()
        if NOT_WESTERN.search(raw):
            raise
        try:
            text = raw.decode("cp1252")
        except UnicodeDecodeError:
            text = ""
        word = re.search(r"\w*[^\x00-\x7f]\w*", text)
        if word is None:
            raise
        return text, f", cp1252 as it is no UTF-8 ({word[0]!r} stands in it)"


def _lines_of(path: Path, reader: Any) -> Iterator[tuple[str, list[str]]]:
    """Rows with the line on which each begins; those without any field are left out as blank lines are."""
    line = 1
    try:
        for row in reader:
            if row:
                yield f"{path}:{line}", row
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}:{line}: not CSV: {error}. Quote fields that hold commas, quotes or line breaks."
        ) from error


def _header(where: str, names: list[str]) -> list[str]:
    """The columns, those that say something by the names that we know them by ("Prompt " is prompt), those without a
    name by their number.

    Raises: InputError for two alike.
    """
    plain = [plain_name(name) for name in names]
    header = [
        short if short in KNOWN else name.strip() or f"{UNNAMED}{i}"
        for i, (name, short) in enumerate(zip(names, plain, strict=True), 1)
    ]
    if twice := [name for name, n in Counter(header).items() if n > 1]:
        raise InputError(f"{where}: the header names {twice[0]!r} twice. Rename or remove one of the columns.")
    return header


def _record(header: list[str], where: str, row: list[str]) -> dict[str, Any] | None:
    """A row by the header; None where all is empty. Empty fields beyond the header or under no name are no more than
    separators."""
    if not any(map(str.strip, row)):
        return None
    if len(row) < len(header) or any(map(str.strip, row[len(header) :])):
        wanted = f"{len(header)} ({', '.join(header)})"
        raise InputError(f"{where}: {len(row)} fields, but the header names {wanted}. Quote fields that hold a comma.")
    return {name: value for name, value in zip(header, row, strict=False) if value or not name.startswith(UNNAMED)}


# ---- Parquet and datasets --------------------------------------------------------------------------------------------


def parquet_rows(path: Path) -> Table:
    """Raises: InputError, also for a file with two columns of one name."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file: {error}") from error
    if twice := [name for name, n in Counter(file.schema_arrow.names).items() if n > 1]:
        raise InputError(f"{path}: two columns are called {twice[0]!r}. Rename or remove one.")

    def rows() -> Iterator[Row]:
        number = 0
        try:
            for batch in file.iter_batches():
                columns = [
                    _plain(path, name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
                ]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield f"{path} row {number}", dict(zip(batch.schema.names, values, strict=True))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read after row {number:,}: {error}") from error

    return Table("Parquet", rows(), _as_it_is)


def _plain(path: Path, name: str, column: Any) -> list[Any]:
    """A column's values. Raises: InputError for such as Python has none for, like a day beyond the year 9999."""
    try:
        return cast("list[Any]", column.to_pylist())
    except (OverflowError, ValueError) as error:
        raise InputError(
            f"{path}: the column {name!r} ({column.type}) cannot be read: {error}. Remove it, or write it as text."
        ) from error


def _as_it_is(where: str, row: dict[str, Any]) -> dict[str, Any]:
    return row


def dataset_rows(path: Path) -> Table:
    """One split that `datasets` wrote with save_to_disk. Raises: InputError, also for files outside the folder."""
    if (path / "dataset_dict.json").is_file():
        splits = _settings(path / "dataset_dict.json").get("splits")
        names = [str(split) for split in splits] if isinstance(splits, list) else []
        raise InputError(
            f"{path}: holds the splits {', '.join(names) or 'that dataset_dict.json does not name'}; name one of them, "
            f"such as {path / (names or ['train'])[0]}."
        )
    files = _settings(path / "state.json").get("_data_files")
    names = [str(file.get("filename")) for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    there = {file.name for pattern in DATASET for file in path.glob(pattern)}
    if not names or not set(names) <= there:
        outside = next((name for name in names if name not in there), None)
        raise InputError(
            f"{path}: state.json names {outside!r} as data, and there is no such file in the folder. Save the data "
            f"set again."
        )
    return Table("a folder of `datasets`", _dataset(path), _as_it_is)


def _dataset(path: Path) -> Iterator[Row]:
    from datasets import load_from_disk

    try:
        for number, row in enumerate(load_from_disk(str(path)), 1):
            yield f"{path} row {number}", dict(row)
    except Exception as error:  # whatever datasets and pyarrow raise for files that are none of theirs
        said = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{path}: does not load as a folder of `datasets` ({type(error).__name__}: {said}). Save it again."
        ) from error


def _settings(path: Path) -> dict[str, Any]:
    """A JSON object of a folder of `datasets`. Raises: InputError."""
    with explained(path):
        text = path.read_bytes() if path.is_file() else b"null"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: is no JSON object, as `datasets` writes it with save_to_disk. Save the data set again."
        )
    return value


# ---- plain text ------------------------------------------------------------------------------------------------------


def text_rows(path: Path) -> Table:
    """Documents between lines of <|endoftext|>, or, without any, between blank lines. Raises: InputError."""
    text, words = whole_text(path)
    lines = io.StringIO(text, newline=None).read().split("\n")  # a line ends with \n, \r\n or \r, and with nothing else
    marked = any(line.strip() == END_OF_TEXT for line in lines)
    form = f"plain text, documents between {END_OF_TEXT if marked else 'blank lines'}{words}"
    return Table(form, _documents(path, lines, marked), _as_it_is)


def _documents(path: Path, lines: list[str], marked: bool) -> Iterator[Row]:
    start, document = 1, list[str]()
    for number, line in enumerate([*lines, END_OF_TEXT], 1):
        if line.strip() == END_OF_TEXT or (not marked and not line.strip(" \t")):
            if any(map(str.strip, document)):
                yield f"{path}:{start}", {"text": "\n".join(document).strip("\n")}
            document = []
        else:
            if not document:
                start = number
            document.append(line)
