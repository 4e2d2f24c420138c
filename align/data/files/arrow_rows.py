"""Rows of an Arrow file, as `datasets` keeps data sets of the hub in its cache."""

from __future__ import annotations

from pathlib import Path

from align.data.files.sources import Table, later
from align.data.records import Row
from align.ground.errors import InputError


def arrow_rows(path: Path) -> Table:
    """The rows of an .arrow file. Raises: InputError, also while the rows are read."""
    from datasets import Dataset

    def refusal(error: Exception) -> InputError:
        return InputError(f"{path}: not a file that `datasets` wrote ({type(error).__name__}: {error}).")

    def parsed(where: str, number: int) -> Row:
        try:
            return dict(rows[number])
        except Exception as error:  # whatever datasets and pyarrow raise
            raise refusal(error) from error

    try:
        rows = Dataset.from_file(str(path))
    except Exception as error:
        raise refusal(error) from error
    places = ((f"{path.name} row {number + 1}", number) for number in range(len(rows)))
    return Table("Arrow", later(places, parsed))
