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
from align.data.shapes.columns import absent_in
from align.data.shapes.keys import named
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


def write(
    outs: Outs, rows: Sequence[Cleaned], said: Json, columns: Mapping[str, str], unseen: Mapping[str, str]
) -> Tally:
    """All three files, whole or none of them; the rows come last. Of the columns `unseen` elsewhere those are told that
    no row has.

    Raises: InputError for what JSON cannot hold, and where no text was found, or none would stay.
    """
    found = [texts(row.row, columns) for row in rows]
    unread = dict.fromkeys(key for row, read in zip(rows, found, strict=True) for key in left(row.row, read))
    tally = Tally(list(unread), absent_in((row.row for row in rows), unseen))
    tally.note(rows, [next((t.text for t in read if t.is_learnt), "") for read in found])
    if not any(found):
        beside = named(tally.left) or "no key with text"
        raise InputError(
            f"{outs.rows}: no row holds a text of a prompt or an answer; found {beside}. "
            "--columns.prompt NAME, --columns.completion NAME … say what the file calls them."
        )
    if not tally.kept:
        raise InputError(f"{outs.rows}: of {tally.rows:,} rows none would stay.\n" + "\n".join(tally.lines()))
    figures = {**said, **tally.figures(), "left_as_they_are": tally.left, "libraries": _versions()}
    with written(outs.rows) as stay, written(outs.report) as report, written(outs.aside, 0o600) as aside:
        os.fchmod(aside.fileno(), 0o600)  # before there is anything to read
        for row in rows:
            if row.removed or row.changes:
                aside.write(_line(row.where, row.aside()))
            if not row.removed:
                stay.write(_line(row.where, row.row))
        report.write(_line(str(outs.report), figures, indent=2))
    return tally


def _line(where: str, value: Row | Json, indent: int | None = None) -> bytes:
    """As UTF-8; half of a surrogate pair, which is no character, as the escape that it was given as."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: the row holds what JSON cannot ({error}). Write it as text.") from error
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent).encode() + b"\n"


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
