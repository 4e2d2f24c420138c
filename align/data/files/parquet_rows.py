"""Rows of a Parquet file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from align.data.files.sources import Table, as_they_are
from align.data.records import Row
from align.ground.errors import InputError

if TYPE_CHECKING:
    from pyarrow import RecordBatch


def parquet_rows(path: Path) -> Table:
    """The rows of a .parquet file. Raises: InputError, also for a file with two columns of one name."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file: {error}") from error
    twice = [name for name, n in Counter(file.schema_arrow.names).items() if n > 1]
    if twice:
        raise InputError(f"{path}: two columns are called {twice[0]!r}. Rename or remove one.")

    return Table("Parquet", as_they_are(batch_rows(path, file.iter_batches())))


def batch_rows(path: Path, batches: Iterable[RecordBatch]) -> Iterator[tuple[str, Row]]:
    """Rows of Arrow batches, with their numbers. Raises: InputError where a file breaks off."""
    import pyarrow

    number = 0
    try:
        for batch in batches:
            names = batch.schema.names
            columns = [_plain(path, name, column) for name, column in zip(names, batch.columns, strict=True)]
            for values in zip(*columns, strict=True):
                number += 1
                yield f"{path} row {number}", dict(zip(names, values, strict=True))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read after row {number:,}: {error}") from error


def _plain(path: Path, name: str, column: Any) -> list[object]:
    """A column's values. Raises: InputError for such as Python has none for, like a day beyond the year 9999."""
    try:
        return cast("list[object]", column.to_pylist())
    except (OverflowError, ValueError) as error:
        raise InputError(
            f"{path}: the column {name!r} ({column.type}) cannot be read: {error}. Remove it, or write it as text."
        ) from error
