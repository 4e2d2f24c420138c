"""Rows out of data files, each with where it stands, so that an error can say so."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from align.errors import InputError
from align.recipe.problems import found
from align.store.files import digest_folder, sha256_file

Row = tuple[str, dict[str, Any]]
"""Where a row stands ("file:line", or "file row 3" where a file has no lines) and what it holds."""

END_OF_TEXT = "<|endoftext|>"


def read_rows(path: str | Path) -> Iterator[Row]:
    """Every row of a data set with where it stands.

    Raises: InputError for a missing, unreadable or malformed file, naming the line.
    """
    path = Path(path)
    if path.is_dir():
        return _read_dataset(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file. Check the path; in a recipe it is relative to the recipe.")
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
    }
    reader = readers.get(suffix(path))
    if reader is None:
        plain = " A .txt file holds texts for pretraining only." if suffix(path) == ".txt" else ""
        raise InputError(f"{path}: cannot tell the format from its name. Expected {', '.join(readers)}, or a folder of `datasets`.{plain}")
    return reader(path)


def data_digest(path: str | Path) -> str:
    """sha256 of a data file, or of a data folder's files and names.

    Raises: InputError when there is nothing to read.
    """
    path = Path(path)
    if path.is_dir():
        return digest_folder(path, ["*.arrow", "*.json"])
    if not path.is_file():
        raise InputError(f"{path}: there is no such file. Check the path; in a recipe it is relative to the recipe.")
    return sha256_file(path)


def read_template(path: str | Path) -> str:
    """The text of a chat template's file. Raises: InputError where it is no UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"chat_template {path}: byte {error.object[error.start]:#04x} is not UTF-8. Convert the file to UTF-8.") from error


def suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.name.endswith(".gz") else path.open("rb")


def _decode(where: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {raw[error.start]:#04x} is not UTF-8. Convert the file to UTF-8.") from error


def _object(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise InputError(f'{where}: found {found(value)}; expected an object such as {{"prompt": …}}.')
    return where, value


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        at = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(f"{where}: not JSON: {reason}{at}. Expected one object on the line.") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _read_jsonl(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        for number, raw in enumerate(file, 1):
            where = f"{path}:{number}"
            if raw.strip():
                yield _object(where, _parse(where, _decode(where, raw).rstrip()))


def _read_json(path: Path) -> Iterator[Row]:
    """One list of objects; a file of JSON lines under this name is read as such."""
    with _open(path) as file:
        text = _decode(str(path), file.read())
    if text.lstrip()[:1] == "{":
        yield from _read_jsonl(path)
        return
    try:
        rows = json.loads(text, parse_constant=_refuse_constant) if text.strip() else []
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno}). Expected a list of objects.") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}. Expected a list of objects.") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: found {found(rows)}; expected a list of objects.")
    for number, row in enumerate(rows, 1):
        yield _object(f"{path} row {number}", row)


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    with _open(path) as raw:
        text = _decode(str(path), raw.read())
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if suffix(path) == ".tsv" else ",", strict=True)
    line = 1
    try:
        header = next(rows, [])
        line = rows.line_num + 1
        for row in rows:
            where = f"{path}:{line}"
            line = rows.line_num + 1
            if not row:
                continue
            if len(row) != len(header):
                wanted = f"{len(header)} ({', '.join(header)})"
                raise InputError(f"{where}: {len(row)} fields, but the header names {wanted}. Quote fields that hold a comma.")
            yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}:{line}: not CSV: {error}. Quote fields that hold commas, quotes or line breaks.") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file: {error}") from error
    number = 0
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"{path} row {number}", row


def _read_dataset(path: Path) -> Iterator[Row]:
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        raise InputError(f"{path}: holds the splits {', '.join(splits)}; name one of them, such as {path / (splits or ['train'])[0]}.")
    if not (path / "state.json").is_file():
        raise InputError(f"{path}: a folder without state.json. Expected a file, or a folder that `datasets` wrote with save_to_disk.")
    from datasets import load_from_disk

    for number, row in enumerate(load_from_disk(str(path)), 1):
        yield f"{path} row {number}", dict(row)


def read_documents(path: Path) -> Iterator[Row]:
    """Documents of a plain text: between lines of <|endoftext|>, or, without any, between blank lines."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file. Check the path; in a recipe it is relative to the recipe.")
    with _open(path) as file:
        lines = _decode(str(path), file.read()).splitlines()
    marked = any(line.strip() == END_OF_TEXT for line in lines)
    start, document = 1, list[str]()
    for number, line in enumerate([*lines, END_OF_TEXT], 1):
        if line.strip() == END_OF_TEXT or (not marked and not line.strip()):
            if any(map(str.strip, document)):
                yield f"{path}:{start}", {"text": "\n".join(document).strip("\n")}
            document = []
        else:
            if not document:
                start = number
            document.append(line)
