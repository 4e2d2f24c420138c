"""Columns that a file calls otherwise: `columns: {prompt: query, chosen: good, rejected: bad}`.

{"query": "Hi", "good": "Hello!", "bad": "What?"}
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from align.data.records import Row
from align.data.shapes.keys import KNOWN, named, plain_name
from align.ground.errors import InputError


def check_columns(columns: Mapping[str, str]) -> None:
    """The names on the left are keys of ours, those on the right differ. Raises: InputError."""
    for ours in columns:
        if ours not in KNOWN:
            near = difflib.get_close_matches(ours, KNOWN, 1, 0.6)
            hint = f"did you mean {near[0]}?" if near else "docs/data.md lists them."
            raise InputError(f"columns.{ours}: no row of ours has the key {ours!r}; {hint}")
    if empty := next((ours for ours, theirs in columns.items() if not theirs), None):
        raise InputError(f"columns.{empty}: expected what the file calls it, found an empty text.")
    twice = [theirs for theirs in columns.values() if [*columns.values()].count(theirs) > 1]
    if twice:
        raise InputError(f"columns: {twice[0]!r} stands for two keys. Name it once.")


def called(where: str, row: Row, columns: Mapping[str, str]) -> Row:
    """The row with its columns called as ours are; "a.b" is b inside a. A column of the file that is called as another
    is to be stays beside it as "NAME of the file".

    Raises: InputError where a row has neither name.
    """
    if not columns:
        return row
    columns = _as_read(row, columns)
    taken = {theirs: ours for ours, theirs in columns.items()}
    out: Row = {}
    for key, value in row.items():
        out[taken.get(key, f"{key} of the file" if columns.get(key, key) in row and key in columns else key)] = value
    for ours, theirs in columns.items():
        if theirs in row:
            continue
        inner = inside(row, theirs)
        if inner is None and ours not in row:
            raise InputError(
                f'{where}: columns.{ours} names "{theirs}", which the row lacks; found {named(list(row)) or "nothing"}.'
            )
        if inner is not None:
            out[ours] = inner
    return out


def absent(row: Row, columns: Mapping[str, str]) -> dict[str, str]:
    """Those of the columns that a row does not have by the file's name."""
    read = _as_read(row, columns)
    return {key: theirs for key, theirs in columns.items() if read[key] not in row and inside(row, theirs) is None}


def _as_read(row: Row, columns: Mapping[str, str]) -> dict[str, str]:
    """The columns by the names that the row has them under: of CSV, the column Question is read as question."""
    return {
        ours: plain_name(theirs) if theirs not in row and plain_name(theirs) in row else theirs
        for ours, theirs in columns.items()
    }


def told_absent(columns: Mapping[str, str]) -> str:
    """What to say of columns that no row has, where the rows have our own keys."""
    return ", ".join(f'no row has "{theirs}" (columns.{ours})' for ours, theirs in columns.items())


def inside(row: Row, path: str) -> object:
    """What stands under "a.b" in a row; None where nothing does."""
    value: object = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
