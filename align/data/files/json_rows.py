"""Rows of JSON files: one object on each line, a list of them, objects one after the other, or an object that holds the
list.

    {"prompt": "Hi", "completion": "Hello!"}
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from align.data.files.sources import Table, decode, encoding_of, explained, in_words, later, opened, suffix, whole_text
from align.data.records import Row
from align.ground.errors import InputError
from align.ground.json import in_words as unreadable
from align.recipe.telling.problems import found

T = TypeVar("T")
HOLDERS = ("data", "rows", "train", "examples", "records", "instances", "items")
"""Names under which an object holds the rows of a file."""
BLANK = re.compile(r"\s*")


class _Twice(Exception):
    """A key that stands twice in one object."""


def _unique(pairs: list[tuple[str, object]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def json_rows(path: Path) -> Table:
    """The rows of a .json, .jsonl or .ndjson file, whichever of the forms it has. Raises: InputError."""
    encoding = encoding_of(path)
    first = next((raw for raw in _lines(path, encoding) if raw.strip()), "{}")
    lines = Table(f"JSON lines{in_words(encoding)}", later(_numbered(path, encoding), parse_line))
    if _is_row(first):
        return lines
    try:
        text, words = whole_text(path)
        values = list(_values(path, text))
    except InputError:
        if suffix(path) == ".json" or first.strip()[:1] in (b"[", "["):
            raise
        return lines  # the first line is a bad row; those after it may be right
    form, rows = _rows_of(path, values)
    return Table(f"{form}{words}", later(rows, check_object))


def parse_line(where: str, raw: bytes | str) -> Row:
    """The object on a line. Raises: InputError."""
    text = raw if isinstance(raw, str) else decode(where, raw)
    value = _parsed(where, partial(DECODER.decode, text.rstrip()), "Expected one object on the line.")
    return check_object(where, value)


def check_object(where: str, value: object) -> Row:
    """The row. Raises: InputError for one that is no object."""
    if not isinstance(value, dict):
        raise InputError(f'{where}: found {found(value)}; expected an object such as {{"prompt": …}}.')
    return value


def _parsed(where: str, parse: Callable[[], T], expected: str) -> T:
    """What `parse` gives. Raises: InputError, in a text of several lines with the line of the error."""
    try:
        return parse()
    except _Twice as error:
        raise InputError(f"{where}: the key {str(error)!r} stands twice in one object. Keep one of them.") from error
    except RecursionError as error:
        raise InputError(f"{where}: nested too deeply. {expected}") from error
    except json.JSONDecodeError as error:
        place = where if error.lineno == 1 else f"{where.rpartition(':')[0]}:{error.lineno}"
        raise InputError(f"{place}: not JSON: {error.msg} (column {error.colno}). {expected}") from error
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {unreadable(error)}. {expected}") from error


def _lines(path: Path, encoding: str) -> Iterator[bytes | str]:
    """Lines as bytes, which a parser decodes one by one, so that it can name the bad one; in UTF-16 and UTF-32 as
    text."""
    with explained(path), opened(path) as file:
        if encoding.startswith("utf-8"):
            yield from file
        else:
            with io.TextIOWrapper(file, encoding, newline="\n") as text:
                yield from text


def _numbered(path: Path, encoding: str) -> Iterator[tuple[str, bytes | str]]:
    return ((f"{path}:{number}", raw) for number, raw in enumerate(_lines(path, encoding), 1) if raw.strip())


def _is_row(line: bytes | str) -> bool:
    """Whether a line is an object by itself, and none that holds the rows."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not _held(value)


def _held(value: Row) -> list[str]:
    lists = {name: inner for name, inner in value.items() if name in HOLDERS and isinstance(inner, list)}
    # a list of texts is a dialogue, as UltraChat has it
    return [name for name in HOLDERS if name in lists and not (lists[name] and isinstance(lists[name][0], str))]


def _values(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """(line, value) of each JSON value of a text. Raises: InputError naming the line of the first that is none."""
    at, line = 0, 1
    expected = "Expected a list of objects, or objects one after the other."
    while (start := _after_blanks(text, at)) < len(text):
        line += text.count("\n", at, start)
        value, at = _parsed(f"{path}:{line}", partial(DECODER.raw_decode, text, start), expected)
        yield line, value
        line += text.count("\n", start, at)


def _after_blanks(text: str, at: int) -> int:
    blanks = BLANK.match(text, at)
    return blanks.end() if blanks else at


def _rows_of(path: Path, values: list[tuple[int, object]]) -> tuple[str, list[tuple[str, object]]]:
    """(form, rows) of a file's values. Raises: InputError for one value that is neither a list nor holds one."""
    if len(values) != 1:
        return "JSON objects one after the other", [(f"{path}:{line}", value) for line, value in values]
    ((line, value),) = values
    form = "a JSON list"
    if isinstance(value, dict):
        held = _held(value)
        if not held:
            return "one JSON object", [(f"{path}:{line}", value)]
        lists = [name for name, inner in value.items() if isinstance(inner, list)]
        if len(lists) > 1:
            raise InputError(
                f"{path}: holds the lists {', '.join(lists)}. Write the one to read into a file of its own."
            )
        beside = [name for name in value if name != held[0]]
        unused = f" (not used: {', '.join(beside)})" if beside else ""
        form = f'the list under "{held[0]}" of a JSON object{unused}'
        value = value[held[0]]
    if not isinstance(value, list):
        raise InputError(f"{path}: found {found(value)}; expected a list of objects.")
    return form, [(f"{path} row {number}", row) for number, row in enumerate(value, 1)]
