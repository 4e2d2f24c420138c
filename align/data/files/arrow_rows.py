"""Rows of an Arrow file, as `datasets` keeps them in its cache."""

from __future__ import annotations

from pathlib import Path

from align.data.files.parquet_rows import batch_rows
from align.data.files.sources import Table, as_they_are
from align.ground.errors import InputError


def arrow_rows(path: Path) -> Table:
    """The rows of an .arrow file, in Arrow's stream or its file format. Raises: InputError."""
    import pyarrow

    source = pyarrow.memory_map(str(path))
    try:
        batches = pyarrow.ipc.open_stream(source)
    except pyarrow.ArrowInvalid:
        source.seek(0)
        try:
            file = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid as error:
            raise InputError(f"{path}: not an Arrow file: {error}") from error
        batches = (file.get_batch(i) for i in range(file.num_record_batches))

    return Table("Arrow", as_they_are(batch_rows(path, batches)))
