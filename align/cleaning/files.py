"""Cleaning from files to files: the rows that stay, the originals of all others, and a report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from align.cleaning.fields import left, texts
from align.cleaning.tally import Cleaned, Tally
from align.data.files.tables import read_documents
from align.data.records import Row
from align.data.tools.canonical import new_file
from align.ground.disk import written
from align.ground.errors import InputError
from align.ground.json import Json
from align.ground.progress import each
from align.recipe import BadRows

LIBRARIES = ("ftfy", "phonenumbers", "py3langid", "python-stdnum", "regex")
UNREADABLE = "a row that cannot be read"


class Outs(NamedTuple):
    """The files that are written."""

    rows: Path
    aside: Path
    report: Path


def new_outs(name: str) -> Outs:
    """Three new files by the name of the first. Raises: InputError where one is there, or the folder is not."""
    path = Path(name)
    if not path.parent.is_dir():
        raise InputError(f"{name}: there is no folder {path.parent}. Make it, or name another file.")
    stem = path.with_suffix("")
    return Outs(new_file(path), new_file(f"{stem}.aside.jsonl"), new_file(f"{stem}.report.json"))


def rows_of(paths: Sequence[Path], bad_rows: BadRows) -> Iterator[Cleaned]:
    """The rows of files, one after the other. Raises: InputError for one that cannot be read, unless it is dropped."""
    number = 0
    for path in paths:
        for where, parse in read_documents(path).rows:
            try:
                row = parse()
            except InputError as error:
                if bad_rows == "error":
                    raise
                yield Cleaned(number, where, None, {}, removed=UNREADABLE, detail=str(error))
            else:
                if row is None:
                    continue
                yield Cleaned(number, where, row, row)
            number += 1


def write(outs: Outs, rows: Sequence[Cleaned], said: Json, columns: Mapping[str, str]) -> Tally:
    """All three files, each whole or not at all; the rows come last. Raises: InputError for what JSON cannot hold."""
    tally, unread = Tally(), dict[str, None]()
    found = [texts(row.row, columns) for row in rows]
    for row, read in zip(rows, found, strict=True):
        unread |= dict.fromkeys(left(row.row, read))
    tally.note(rows, [next((t.text for t in read if t.is_learnt), "") for read in found])
    if not tally.kept:
        raise InputError(f"{outs.rows}: of {tally.rows:,} rows none would stay.\n" + "\n".join(tally.lines()))
    touched = (row.aside() for row in rows if row.removed or row.changes)
    _write_lines(outs.aside, touched, 0o600)
    report = {**said, **tally.figures(), "left_as_they_are": list(unread), "libraries": _versions()}
    _write_lines(outs.report, [report], 0o644, indent=2)
    _write_lines(outs.rows, (row.row for row in rows if not row.removed), 0o644)
    return tally


def _write_lines(path: Path, values: Iterable[Row | Json], mode: int, indent: int | None = None) -> None:
    with written(path, mode) as file:
        os.fchmod(file.fileno(), mode)  # before there is anything to read
        for value in values:
            try:
                text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
            except (TypeError, ValueError) as error:
                raise InputError(f"{path}: a row holds what JSON cannot ({error}). Write it as text.") from error
            file.write(text.encode() + b"\n")


def _versions() -> Json:
    found: Json = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cleaned_rows(
    paths: Sequence[Path], bad_rows: BadRows, work: Callable[[Iterable[Cleaned]], list[Cleaned]]
) -> list[Cleaned]:
    """The rows of files after the work, whose progress is told."""
    rows = list(rows_of(paths, bad_rows))
    if not rows:
        raise InputError(f"{', '.join(map(str, paths))}: holds no row.")
    return work(each("cleaning", rows, "rows"))
