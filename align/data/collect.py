"""Records of a data set: rows parsed one by one, those that cannot be used refused or left out, and what was found told
in one line."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from align.data.counts import LeftOut
from align.data.dialects.table import Dialect, as_ours, dialects_for, told
from align.data.filed import FiledList
from align.data.files.sources import Table, Unparsed
from align.data.records import Prompt, R, Row
from align.data.shapes.columns import absent, called, check_columns, told_absent
from align.data.shapes.keys import named, plain_name, renamed, unused
from align.data.shapes.verdicts import put_aside
from align.data.split import hashed
from align.ground.errors import InputError
from align.ground.heap import set_aside
from align.recipe import BadRows

LOOKED = 1000
"""Rows at each end of a data file that are read before a run."""


class Records(FiledList[R]):
    """Records of one kind, and what was found on the way to them."""

    def __init__(self, records: Sequence[R] = (), form: str = "") -> None:
        super().__init__(records)
        self._mark = hashed
        self.form = form
        """What the file is."""
        self.shapes: Counter[tuple[str, ...]] = Counter()
        """The keys that were read together, and in how many rows."""
        self.dialects: Counter[str] = Counter()
        """Dialects, and how many rows are in each."""
        self.unused: dict[str, None] = {}
        """Keys that no record holds, or, of prompts, that go to judges."""
        self.renamed: dict[str, None] = {}
        """Keys in another case than the one that they are known by."""
        self.absent: Mapping[str, str] = {}
        """Columns that are set, and that no row has."""
        self.dropped = LeftOut()
        self.rows = 0
        """Rows of the file, also where only some of them were looked at."""
        self.parts: tuple[Records[R], ...] = ()
        """Of a mixture, those of each file."""
        self._read_of: dict[tuple[str, ...], tuple[str, ...]] = {}
        """The keys of a row, and those of them that are read."""

    def take(self, found: Sequence[R | str]) -> None:
        """Add records; count those that were left out, by the reason."""
        for item in found:
            if isinstance(item, str):
                self.dropped[item] += 1
            else:
                self.append(item)

    def note(self, given: Row, rows: Sequence[Row], into: Into, dialect: str | None) -> None:
        """Count the keys of a row, as they were given and as they were read."""
        if dialect:
            self.dialects[dialect] += 1
        else:
            self.renamed |= dict.fromkeys(key for key in given if key not in rows[0] and plain_name(key) in rows[0])
        keys = tuple(rows[0])
        if keys not in self._read_of:
            others = [*unused(rows[0], into.kind), *(key for key in into.without if key in rows[0])]
            self._read_of[keys] = tuple(key for key in keys if key not in others)
            self.unused |= dict.fromkeys(others)
        self.shapes[self._read_of[keys]] += 1

    @property
    def whole(self) -> bool:
        """Whether these are all rows, where only both ends were looked at."""
        return all(part.whole for part in self.parts) if self.parts else self.rows <= 2 * LOOKED

    @property
    def shape(self) -> str:
        """What the rows are: "JSON lines (prompt, completion)"."""
        common = self.shapes.most_common(3)
        several = len(self.shapes) > 1
        said = [", ".join(keys) for keys, _ in common if keys]
        if several:
            said = [f"{n:,} with {', '.join(keys)}" for keys, n in common if keys]
        kinds = "; ".join(said)
        form = self.form + "".join(f", rows of {told(name)}" for name in self.dialects)
        more = f"; and {len(self.shapes) - 3:,} more shapes" if len(self.shapes) > 3 else ""
        return f"{form} ({kinds}{more})" if kinds else form

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
        if self.absent:
            found.append(told_absent(self.absent))
        if self.dropped:
            found.append(f"left out: {self.dropped}")
        return "; ".join(found)

    @property
    def looked_at(self) -> str:
        """What was found where both ends were looked at."""
        if self.parts:
            return "; ".join(part.looked_at for part in self.parts)
        part = "" if self.whole else f"; the first and the last {LOOKED:,} were read"
        return f"{self.rows:,} rows of {self.told}{part}"

    def __str__(self) -> str:
        return f"{len(self):,} records from {self.told}"


def joined(parts: Sequence[Records[R]]) -> Records[R]:
    """The records of several files, one after the other."""
    out: Records[R] = Records()
    out.parts = tuple(parts)
    for part in parts:
        out.rows += part.rows
        for record in part:
            out.append(record)
    return out


Read: TypeAlias = "R | str | list[R | str]"
"""What a row is read as: a record, the reason why it is left out, or several of these."""


@dataclass(frozen=True)
class Into:
    """What rows are to be made of: records of a kind, from rows of a shape, whose columns are called so."""

    kind: str
    shape: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Keys of ours, and what the file calls them."""
    without: tuple[str, ...] = ()
    """Keys of the kind that are not used here."""

    @cached_property
    def dialects(self) -> Mapping[str, Dialect]:
        return dialects_for(self.kind, self.shape)

    def rows(self, where: str, given: Row) -> tuple[list[Row], str | None]:
        """(the row in keys of ours, or several, the dialect that it was in). Raises: InputError."""
        ours, dialect = as_ours(where, called(where, given, self.columns), self.kind, self.dialects)
        return [renamed(where, row, self.kind) for row in ours], dialect


def collect(
    path: str | Path,
    table: Table,
    into: Into,
    read: Callable[[str, Row], Read[R]],
    bad_rows: BadRows = "error",
    sample: int | None = None,
) -> Records[R]:
    """Records of every row, or of the first and the last `sample`.

    Raises: InputError for a row that cannot be used, unless those are dropped; where nothing is left; for a file that
    breaks off; and for columns and shapes that are not known.
    """
    records: Records[R] = Records(form=table.form)
    check_columns(into.columns)
    records.absent = into.columns
    with closing(table.rows), set_aside():  # the file, where a row is refused
        for where, parse in ends(table.rows, sample, records):
            try:
                given = parse()
                records.absent = absent(given or {}, records.absent)
                rows, dialect = into.rows(where, given) if given is not None else ([], None)
                found = [item for row in rows for item in _read(where, row, into.kind, read)]
            except (InputError, RecursionError) as error:
                refusal = _refusal(where, error)
                if bad_rows == "error":
                    raise refusal from error
                records.dropped.bad(where, refusal)
                continue
            if given is None or not rows:
                records.dropped["empty rows" if given is None else "rows that hold no such record"] += 1
            records.take(found)
            if any(not isinstance(item, str) for item in found):
                records.note(given or {}, rows, into, dialect)
    if records.dropped and not records:
        raise InputError(
            f"{path}: every row was left out ({records.dropped.counted}). "
            f"Expected at least one {into.kind} to work with.{records.dropped.shown}"
        )
    if not records:
        raise InputError(f"{path}: the data set is empty. Expected at least one {into.kind}.")
    return records


def _read(where: str, row: Row, kind: str, read: Callable[[str, Row], Read[R]]) -> list[R | str]:
    """What a row of ours holds: records, and reasons why others are left out."""
    aside = put_aside(where, row, kind)
    found = f"rows marked {aside}" if aside else read(where, row)
    return found if isinstance(found, list) else [found]


def _refusal(where: str, error: InputError | RecursionError) -> InputError:
    """Why a row cannot be used."""
    return error if isinstance(error, InputError) else InputError(f"{where}: nested too deeply. Remove the row.")


def ends(rows: Iterator[Unparsed], sample: int | None, records: Records[R]) -> Iterator[Unparsed]:
    """All rows, or the first and the last ones, counted."""

    def counted() -> Iterator[Unparsed]:
        for row in rows:
            records.rows += 1
            yield row

    every = counted()
    yield from islice(every, sample)
    yield from deque(every, maxlen=sample)
