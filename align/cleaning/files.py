"""Cleaning from files to files: the rows that stay, the originals of all others, and a report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from align.cleaning.fields import left, texts
from align.cleaning.tally import Cleaned, Tally, place_of
from align.data.files.tables import read_documents
from align.data.records import Row
from align.data.shapes.keys import named
from align.ground.errors import InputError
from align.ground.json import Json
from align.recipe import BadRows

ROWS, ASIDE, REPORT = "data.jsonl", "aside.jsonl", "report.json"
"""The files that are written."""
LIBRARIES = ("ftfy", "phonenumbers", "py3langid", "python-stdnum", "regex")
UNREADABLE = "a row that cannot be read"


def rows_of(paths: Sequence[Path], bad_rows: BadRows) -> Iterator[Cleaned]:
    """The rows of files, one after the other. Raises: InputError for one that cannot be read, unless it is dropped, and
    where there is none."""
    return numbered(paths, (row for path in paths for row in rows_in(path, bad_rows)))


def rows_in(path: Path, bad_rows: BadRows) -> Iterator[Cleaned]:
    """As `rows_of`, of one file, which may be empty; no row has its number yet."""
    for where, parse in read_documents(path).rows:
        place = place_of(where, path)
        try:
            row = parse()
        except InputError as error:
            if bad_rows == "error":
                raise
            yield Cleaned(0, place, None, {}, removed=UNREADABLE, detail=place_of(str(error), path))
        else:
            if row is not None:
                yield Cleaned(0, place, row, row)


def numbered(paths: Sequence[Path], rows: Iterable[Cleaned]) -> Iterator[Cleaned]:
    """The rows of files, each with its number. Raises: InputError where there is none."""
    number = -1
    for number, row in enumerate(rows):
        row.number = number
        yield row
    if number < 0:
        raise InputError(f"{', '.join(map(str, paths))}: holds no row.")


def write(
    folder: Path, rows: Iterable[Cleaned], said: Json, columns: Mapping[str, str], unseen: Mapping[str, str]
) -> Tally:
    """All three files in a folder. Of the columns `unseen` elsewhere those are counted that no row has.

    Raises: InputError for what JSON cannot hold, and where no text was found, or none would stay.
    """
    tally, is_text = Tally(unseen), False
    with (folder / ROWS).open("wb") as stay, (folder / ASIDE).open("wb") as aside:
        for row in rows:
            found = texts(row.row, columns)
            is_text |= bool(found)
            tally.note(row, next((text.text for text in found if text.is_learnt), ""), left(row.row, found))
            if row.removed or row.changes:
                aside.write(line(row.where, row.aside()))
            if not row.removed:
                stay.write(line(row.where, row.row))
    if not is_text:
        raise InputError(without_text(list(tally.left)))
    if not tally.kept:
        raise InputError(f"of {tally.rows:,} rows none would stay.\n" + "\n".join(tally.lines()))
    figures = {**said, **tally.figures(), "libraries": _versions()}
    (folder / REPORT).write_bytes(line(REPORT, figures, indent=2))
    return tally


def without_text(keys: Sequence[str]) -> str:
    """What is said where no row holds a text that is known; `keys` hold text that is not."""
    return (
        f"no row holds a text of a prompt or an answer; found {named(keys) or 'no key with text'}. "
        "columns.prompt NAME, columns.completion NAME … say what the file calls them."
    )


def line(where: str, value: Row | Json, indent: int | None = None) -> bytes:
    """As UTF-8; half of a surrogate pair, which is no character, as the escape that it was given as. Raises: InputError
    for what JSON cannot hold."""
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
