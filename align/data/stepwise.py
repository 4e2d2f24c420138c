"""Reading answers in steps: what holds of a file as a whole, beside what holds of each row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from align.data.formats import Reader, RecordReader, Records
from align.data.records import Stepwise
from align.data.shapes.keys import STEPWISE
from align.data.shapes.steps import Wrong, stepwise
from align.recipe import BadRows


def read_steps(separator: str) -> RecordReader[Stepwise]:
    """What reads answers in steps that are right or wrong. Raises: InputError for a file with a third kind of label,
    also where bad rows are dropped."""

    def read(
        path: str | Path,
        bad_rows: BadRows = "error",
        sample: int | None = None,
        columns: Mapping[str, str] | None = None,
        shape: str | None = None,
    ) -> Records[Stepwise]:
        wrong = Wrong()
        records = Reader(STEPWISE, stepwise(separator, wrong))(path, bad_rows, sample, columns, shape)
        wrong.check()
        return records

    return read
