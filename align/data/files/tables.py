"""Tables: the rows of a data set, read by what its files are called."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from align.data.files.arrow_rows import arrow_rows
from align.data.files.csv_rows import csv_rows
from align.data.files.dataset_rows import dataset_rows
from align.data.files.json_rows import json_rows
from align.data.files.parquet_rows import parquet_rows
from align.data.files.sources import PACKED, Table, data_files, suffix
from align.data.files.tar_rows import tar_rows
from align.data.files.text_rows import text_rows
from align.ground.errors import InputError

Format = Callable[[Path], Table]
"""Reads files of one kind. Raises: InputError, also while the rows are read."""

FORMATS: dict[str, Format] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
    ".tar": tar_rows,
}
"""What reads a file, by the ending of its name."""
ARCHIVES = (".zip", ".7z")


def read_rows(path: str | Path) -> Table:
    """The rows of a data set: of a file, a folder, or the files that a pattern matches, one after the other.

    Raises: InputError for a missing or unreadable one; so do the rows as they are read, naming the line.
    """
    return _chained(path, _format_of)


def read_documents(path: str | Path) -> Table:
    """The rows of a data set whose .txt files hold documents. Raises: InputError."""
    return _chained(path, lambda file: text_rows if suffix(file) == ".txt" else _format_of(file))


def _chained(path: str | Path, format_of: Callable[[Path], Format]) -> Table:
    files = data_files(path)
    formats = [format_of(file) for file in files]
    first = formats[0](files[0])
    if len(files) == 1:
        return first
    others = (read(file) for read, file in zip(formats[1:], files[1:], strict=True))
    rows = (row for table in itertools.chain([first], others) for row in table.rows)
    return Table(f"{len(files):,} files, the first {first.form}", rows)


def _format_of(path: Path) -> Format:
    """What reads a file of this name. Raises: InputError."""
    if path.is_dir():
        return dataset_rows
    ending = suffix(path)
    if ending in FORMATS:
        return FORMATS[ending]
    remedy = " Unpack it first." if path.suffix.lower() in ARCHIVES else ""
    if ending == ".txt":
        remedy = " A .txt file holds texts, for pretrain with `learn: all` alone."
    raise InputError(
        f"{path}: cannot tell the format from its name. Expected {', '.join(FORMATS)} (each also with "
        f"{', '.join(PACKED)}), or a folder of `datasets`.{remedy}"
    )
