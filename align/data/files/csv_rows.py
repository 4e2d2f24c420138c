"""Rows of CSV as spreadsheets write it: a header, then a row on each line.

prompt,completion
Hi,Hello!
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from align.data.files.sources import Table, explained, later, opened, suffix, whole_text
from align.data.records import Row
from align.data.shapes.keys import KNOWN, plain_name
from align.ground.errors import InputError

SEPARATORS = {",": "CSV", ";": "CSV with semicolons", "\t": "a table with tabs", "|": "CSV with |"}
CALLED = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
UNNAMED = "unnamed_"
NOT_WESTERN = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\x80-\xff]{3}")
"""A letter in UTF-8, or three characters beyond ASCII in a row: no Western word in cp1252 holds them."""


def csv_rows(path: Path) -> Table:
    """Fields apart by comma, semicolon, tab or bar, whichever the header has most of. Raises: InputError."""
    text, words = _spreadsheet_text(path)
    csv.field_size_limit(1 << 30)
    top = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    tabs = suffix(path) == ".tsv"
    separator = max(SEPARATORS, key=lambda s: (top.count(s), s == "\t" and tabs))
    rows = _lines_of(path, text, separator)
    where, given = next(rows, (f"{path}:1", []))
    header = _header(where, given)
    names = zip((name.strip() for name in given), header, strict=True)
    renamed = [f"{old!r} as {new}" for old, new in names if old not in ("", new)]
    words += f", the columns {', '.join(renamed)}" if renamed else ""
    return Table(f"{SEPARATORS[separator]}{words}", later(rows, partial(_row, header, separator)))


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


def _lines_of(path: Path, text: str, separator: str) -> Iterator[tuple[str, list[str]]]:
    """Rows with the line on which each begins; those without any field are left out as blank lines are."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield f"{path}:{line}", row
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}:{line}: not CSV: {error}. Quote fields that hold {CALLED[separator]}s, quotes or line breaks."
        ) from error


def _header(where: str, names: list[str]) -> list[str]:
    """The columns, those that say something by the names that we know them by ("Prompt " is prompt), those without a
    name by their number.

    Raises: InputError for two alike.
    """
    header = []
    for i, name in enumerate(names, 1):
        plain = plain_name(name)
        header.append(plain if plain in KNOWN else name.strip() or f"{UNNAMED}{i}")
    twice = [name for name, n in Counter(header).items() if n > 1]
    if twice:
        raise InputError(f"{where}: the header names {twice[0]!r} twice. Rename or remove one of the columns.")
    return header


def _row(header: list[str], separator: str, where: str, fields: list[str]) -> Row | None:
    """A row by the header; None where all is empty. Empty fields beyond the header or under no name are no more than
    separators."""
    if not any(map(str.strip, fields)):
        return None
    if len(fields) < len(header) or any(map(str.strip, fields[len(header) :])):
        sign, than = CALLED[separator], "fewer" if len(fields) < len(header) else "more"
        raise InputError(
            f"{where}: {than} fields than the header names, {len(fields)} for {len(header)} ({', '.join(header)}). "
            f"Here each {sign} begins a new field: quote fields that hold a {sign}."
        )
    return {name: value for name, value in zip(header, fields, strict=False) if value or not name.startswith(UNNAMED)}
