"""Reading answers that are called good or bad, or whose steps are: what holds of all files of a run, beside what holds
of each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from align.data.collect import Read
from align.data.formats import Reader, Records, labelled
from align.data.records import Labelled, R, Row, Stepwise
from align.data.shapes.keys import LABELLED, LABELS, STEPWISE
from align.data.shapes.label import Wrong
from align.data.shapes.steps import stepwise
from align.recipe import BadRows


@dataclass(frozen=True)
class JudgedReader(Generic[R]):
    """Reads the files of a run, one after the other. Raises: InputError for a third kind of label in one of them, or in
    several together, also where bad rows are dropped."""

    kind: str
    read: Callable[[str, Row], Read[R]]
    """Notes in `wrong` what calls an answer bad."""
    wrong: Wrong

    def __call__(
        self,
        path: str | Path,
        bad_rows: BadRows = "error",
        sample: int | None = None,
        columns: Mapping[str, str] | None = None,
        shape: str | None = None,
    ) -> Records[R]:
        without = ("margin",) if self.kind == LABELLED else ()
        records = Reader(self.kind, self.read, without=without)(path, bad_rows, sample, columns, shape)
        self.wrong.check()
        return records


def read_steps(separator: str) -> JudgedReader[Stepwise]:
    """What reads answers in steps that are right or wrong."""
    wrong = Wrong(
        "a step is right or wrong here. Write every 0 as 1, as Lightman et al. count neutral steps, or as -1."
    )
    return JudgedReader(STEPWISE, stepwise(separator, wrong), wrong)


def read_labelled() -> JudgedReader[Labelled]:
    """What reads answers that are desirable or not. A pair gives two of them, as TRL's `unpair_preference_dataset`
    does."""
    wrong = Wrong("an answer is desirable or not here. Write true or false, and leave neutral answers out.")

    def read(where: str, row: Row) -> Read[Labelled]:
        found = labelled(where, row)
        if isinstance(found, Labelled):
            for key in (key for key in LABELS if key in row):
                wrong.note(where, key, [row[key]])
        return found

    return JudgedReader(LABELLED, read, wrong)
