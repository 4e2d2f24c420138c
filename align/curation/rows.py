"""Rows on their way from the data of a stage to those of its artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Protocol

from align.cleaning.fields import texts
from align.cleaning.files import ROWS, rows_of, without_text, write
from align.cleaning.tally import Cleaned
from align.data.collect import Records, ends
from align.data.filed import Spool
from align.data.files.sources import check_unchanged, data_digest
from align.data.files.tables import read_documents
from align.data.formats import RecordReader
from align.data.records import Record, Text
from align.data.shapes.columns import absent, check_columns
from align.data.tools.canonical import as_line
from align.data.tools.kinds import kind_of
from align.ground.errors import InputError
from align.ground.json import Json
from align.ground.progress import Task
from align.ground.terminal import say
from align.inputs.fit import root
from align.recipe import BadRows, Settings
from align.stage import reading
from align.stage.describe import C, Outcome, Stage
from align.stage.workbench import Workbench


class RowWork(Protocol):
    """What is done to rows."""

    unseen: Mapping[str, str]
    """Columns that were not met before the rows are looked at."""

    def all(self, rows: Iterable[Cleaned]) -> Iterator[Cleaned]: ...


def paths(bench: Workbench, name: str) -> list[Path]:
    """The files of a setting, in their order."""
    return [path for key, path in bench.question.data.items() if root(key) == name]


def through(bench: Workbench, work: RowWork, said: Json) -> Outcome:
    """Rows read, worked on one by one, and written with what was done; `said` stands in the report."""
    config, data = bench.config, bench.question.data
    rows = rows_of(paths(bench, "data"), config.bad_rows)
    digests, elsewhere = bench.question.digests, bench.question.hub_data
    inputs = [{"file": elsewhere.get(key, path.name), "sha256": digests[key]} for key, path in data.items()]
    try:
        with Task(f"reading {', '.join(path.name for path in paths(bench, 'data'))}", unit="rows") as told:

            def counted() -> Iterator[Cleaned]:
                for row in rows:
                    told.add()
                    yield row

            tally = write(bench.folder, work.all(counted()), {"inputs": inputs, **said}, config.columns, work.unseen)
    except InputError as error:
        raise InputError(f"{bench.title}: {error}") from error
    for key, path in data.items():
        check_unchanged(path, digests[key], data_digest(path))
    head = f"{bench.title}: {tally.kept:,} of {tally.rows:,} rows stay"
    say("\n".join([head, *tally.lines()]))
    return Outcome(bench.folder, "data", None, dict(tally.metrics()))


def read_raw(
    path: str | Path,
    bad_rows: BadRows = "error",
    sample: int | None = None,
    columns: Mapping[str, str] | None = None,
    shape: str | None = None,
) -> Records[Text]:
    """The texts of rows as they stand, whatever they are rows of. Raises: InputError for a row that cannot be read."""
    table = read_documents(path)
    records: Records[Text] = Records(form=table.form)
    check_columns(columns or {})
    records.absent = columns or {}
    with closing(table.rows):
        for where, parse in ends(table.rows, sample, records):
            try:
                row = parse()
            except InputError as error:
                if bad_rows == "error":
                    raise
                records.dropped.bad(where, error)
                continue
            records.absent = absent(row or {}, records.absent)
            if row is not None:
                records.append(Text("\n".join(text.text for text in texts(row, columns)), where))
                records.shapes[tuple(row)] += 1
    return records


def records_of(bench: Workbench) -> Records[Record]:
    """The records of a stage's data, all of one kind. Raises: InputError."""
    records = reading.read(bench, "data")
    names = [path.name for path in paths(bench, "data")]
    kinds = {name: kind_of(part[0]) for name, part in zip(names, records.parts or [records], strict=True)}
    if len({*kinds.values()}) > 1:
        told = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        raise InputError(
            f"{bench.title}: the files hold different kinds: {told}. Set read_as to the one that is meant."
        )
    return records


def write_rows(folder: Path, records: Iterable[Record], name: str = ROWS) -> None:
    """Records as rows of ours. Raises: InputError for what JSON cannot hold."""
    with (folder / name).open("w", encoding="utf-8") as file:
        file.writelines(map(as_line, records))


def write_shuffled(folder: Path, records: Sequence[Record], draw: Random) -> None:
    """Records as rows of ours, in another order; they wait for it on disk."""
    lines, order = Spool(), list(range(len(records)))
    for record in records:
        lines.append(as_line(record).encode())
    draw.shuffle(order)
    with (folder / ROWS).open("wb") as file:
        file.writelines(lines[i] for i in order)


def on_rows(
    name: str,
    *,
    version: int,
    config: type[C],
    settings: type[Settings],
    work: Callable[[Workbench], RowWork],
    does: str,
) -> Stage[C]:
    """A stage that works on rows as they stand; those of its settings that are `settings` stand in the report."""

    def ready(bench: Workbench, records: Mapping[str, Records[Text]]) -> None:
        work(bench)
        found = records.get("data")
        if found is not None and found.whole and not any(text.text for text in found):
            keys = {key: None for part in found.parts or [found] for shape in part.shapes for key in shape}
            raise InputError(f"{bench.title}: {without_text(list(keys))}")

    def done(bench: Workbench) -> Outcome:
        said = {name: value for name, value in bench.settings.items() if name in settings.model_fields}
        return through(bench, work(bench), {"settings": said})

    return stage(name, version=version, config=config, work=done, reads=lambda given: read_raw, does=does, ready=ready)


def stage(
    name: str,
    *,
    version: int,
    config: type[C],
    work: Callable[[Workbench], Outcome],
    reads: Callable[[C], RecordReader],
    does: str,
    ready: Callable[[Workbench, Mapping[str, Records[Text]]], None] = lambda bench, records: None,
) -> Stage[C]:
    """A stage that makes data of data."""
    return Stage(
        name,
        version=version,
        config=config,
        inputs={},
        work=work,
        makes=("data",),
        reads=lambda given: {"data": reads(given)},
        does=does,
        ready=ready,
    )
