"""Records of a data set: rows parsed one by one, those that cannot be used refused or left out, and what was found told
in one line."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from align.data.counts import LeftOut
from align.data.files.sources import Table, Unparsed
from align.data.records import Prompt, R, Row
from align.data.shapes.dialects import as_ours
from align.data.shapes.keys import named, renamed, unused
from align.data.shapes.verdicts import put_aside
from align.ground.errors import InputError
from align.recipe import BadRows

LOOKED = 1000
"""Rows at each end of a data file that are read before a run."""


class Records(list[R]):
    """Records of one kind, and what was found on the way to them."""

    def __init__(self, records: Sequence[R] = (), form: str = "") -> None:
        super().__init__(records)
        self.form = form
        """What the file is."""
        self.shapes: Counter[tuple[str, ...]] = Counter()
        """The keys that were read together, and in how many rows."""
        self.unused: dict[str, None] = {}
        """Keys that no record holds, or, of prompts, that go to judges."""
        self.renamed: dict[str, None] = {}
        """Keys in another case than the one that they are known by."""
        self.dropped = LeftOut()
        self.rows = 0
        """Rows of the file, also where only some of them were looked at."""
        self._read_of: dict[tuple[str, ...], tuple[str, ...]] = {}
        """The keys of a row, and those of them that are read."""

    def note(self, given: Row, row: Row, kind: str, without: tuple[str, ...]) -> None:
        """Count a row's keys, as they were given and as they were read."""
        self.renamed |= dict.fromkeys(key for key in given if key not in row)
        keys = tuple(row)
        if keys not in self._read_of:
            others = [*unused(row, kind), *(key for key in without if key in row)]
            self._read_of[keys] = tuple(key for key in keys if key not in others)
            self.unused |= dict.fromkeys(others)
        self.shapes[self._read_of[keys]] += 1

    @property
    def whole(self) -> bool:
        """Whether these are all rows, where only both ends were looked at."""
        return self.rows <= 2 * LOOKED

    @property
    def shape(self) -> str:
        """What the rows are: "JSON lines (prompt, completion)"."""
        common = self.shapes.most_common(3)
        several = len(self.shapes) > 1
        said = [", ".join(keys) for keys, _ in common if keys]
        if several:
            said = [f"{n:,} with {', '.join(keys)}" for keys, n in common if keys]
        kinds = "; ".join(said)
        more = f"; and {len(self.shapes) - 3:,} more shapes" if len(self.shapes) > 3 else ""
        return f"{self.form} ({kinds}{more})" if kinds else self.form

    @property
    def beside(self) -> str:
        """The keys that no record reads."""
        return named(list(self.unused))

    @property
    def told(self) -> str:
        """All that was found."""
        kept = bool(self) and isinstance(self[0], Prompt)
        found = [self.shape]
        if self.renamed:
            found.append(f"in another case: {named(list(self.renamed))}")
        if self.unused:
            found.append(f"{'kept beside the prompt' if kept else 'not used'}: {self.beside}")
        if self.dropped:
            found.append(f"left out: {self.dropped}")
        return "; ".join(found)

    def __str__(self) -> str:
        return f"{len(self):,} records from {self.told}"


def collect(
    path: str | Path,
    kind: str,
    table: Table,
    read: Callable[[str, Row], R | list[R] | str],
    bad_rows: BadRows = "error",
    sample: int | None = None,
    without: tuple[str, ...] = (),
) -> Records[R]:
    """Records of every row, or of the first and the last `sample`. `read` gives a record, several, or the
    reason why the row is left out; `without` are keys of its kind that are not used here.

    Raises: InputError for a row that cannot be used, unless those are dropped; where nothing is left; and for a file
    that breaks off.
    """
    records: Records[R] = Records(form=table.form)
    with closing(table.rows):  # the file, where a row is refused
        for where, parse in _ends(table.rows, sample, records):
            given, row = None, None
            record: R | list[R] | str = "empty rows"
            try:
                given = parse()
                if given is not None:
                    given = as_ours(where, given)
                    row = renamed(where, given, kind)
                    aside = put_aside(where, row, kind)
                    record = f"rows marked {aside}" if aside else read(where, row)
            except (InputError, RecursionError) as error:
                refusal = _refusal(where, error)
                if bad_rows == "error":
                    raise refusal from error
                records.dropped.bad(where, refusal)
                continue
            if isinstance(record, str) or row is None or given is None:
                records.dropped[str(record)] += 1
                continue
            records.extend(record if isinstance(record, list) else [record])
            records.note(given, row, kind, without)
    if records.dropped and not records:
        raise InputError(
            f"{path}: every row was left out ({records.dropped}). Expected at least one {kind} to work with."
        )
    if not records:
        raise InputError(f"{path}: the data set is empty. Expected at least one {kind}.")
    return records


def _refusal(where: str, error: InputError | RecursionError) -> InputError:
    """Why a row cannot be used."""
    return error if isinstance(error, InputError) else InputError(f"{where}: nested too deeply. Remove the row.")


def _ends(rows: Iterator[Unparsed], sample: int | None, records: Records[R]) -> Iterator[Unparsed]:
    """All rows, or the first and the last ones, counted."""

    def counted() -> Iterator[Unparsed]:
        for row in rows:
            records.rows += 1
            yield row

    every = counted()
    yield from islice(every, sample)
    yield from deque(every, maxlen=sample)
