"""The ends of data files, looked at before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

from align.data.collect import joined
from align.data.formats import LOOKED, Reader, RecordReader, Records
from align.data.records import R
from align.data.shapes.advice import of_file
from align.ground.errors import InputError
from align.inputs.fit import find_file, root
from align.recipe import RowSettings, StageConfig
from align.recipe.mixture import mixed_file

Ends: TypeAlias = dict[tuple[object, ...], Records[Any]]
"""First and last rows, by the file and how it was read: what runs that read alike read once."""


def look(
    config: StageConfig,
    readers: Mapping[str, RecordReader[R]],
    data: Mapping[str, Path],
    seen: Ends | None = None,
) -> dict[str, Records[R]]:
    """The first and last rows of a stage's data, by the setting, but where an earlier stage is to make some of them;
    those that were `seen` are not read again.

    Raises: InputError for a row that cannot be used.
    """
    to_come = {root(name) for name, path in data.items() if not find_file(str(path))}
    there = {name: path for name, path in data.items() if root(name) in readers and root(name) not in to_come}
    if not there:
        return {}
    assert isinstance(config, RowSettings)
    found = {name: _ends(name, path, readers[root(name)], config, seen) for name, path in there.items()}
    mixed = {root(name): [r for n, r in found.items() if root(n) == root(name)] for name in found if "/" in name}
    return {name: joined(parts) for name, parts in mixed.items()} | {n: r for n, r in found.items() if "/" not in n}


def read_file(
    name: str, path: Path, reader: RecordReader[R], config: RowSettings, sample: int | None = None
) -> Records[R]:
    """The records of a data file, whose columns are called as is said of it, or of all. Raises: InputError for a row
    that cannot be used."""
    try:
        with of_file() if mixed_file(config, name) else nullcontext():
            return reader(path, config.bad_rows, sample, _columns(config, name), config.shape)
    except InputError as error:
        if "/" in name and str(error).startswith("columns"):
            raise InputError(f"{path}: {error}") from error
        raise


def _columns(config: RowSettings, name: str) -> dict[str, str]:
    file = mixed_file(config, name)
    return {**config.columns, **(file.columns or {})} if file else config.columns


def _ends(name: str, path: Path, reader: RecordReader[R], config: RowSettings, seen: Ends | None) -> Records[R]:
    """The first and last rows of a file. Other readers than a plain one compare the files of one run."""
    if seen is None or not isinstance(reader, Reader):
        return read_file(name, path, reader, config, LOOKED)
    asked = (path, reader, config.bad_rows, tuple(sorted(_columns(config, name).items())), config.shape)
    if asked not in seen:
        seen[asked] = read_file(name, path, reader, config, LOOKED)
    return seen[asked]
