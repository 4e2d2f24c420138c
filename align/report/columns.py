"""Columns of `align ls` that are asked for by name: any setting, figure, parent or cost that an artifact of the store
has. No torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from align.ground.errors import AlignError, InputError
from align.ground.json import Json
from align.ground.terminal import say
from align.report.diff import flat
from align.report.lists import Row
from align.report.summary import duration, memory
from align.report.text import SHORT, fits, fitted, size_text, time_text, value_text
from align.store import Artifact, CostRecord, Store
from align.store.artifact import STORED

SHOWN: dict[str, Callable[[str], str]] = {"digest": lambda digest: digest[:SHORT], "finished": time_text}
SIZES: dict[str, Callable[[float], str]] = {
    "size": lambda size: size_text(round(size)),
    "cost.seconds": duration,
    "cost.peak_memory_bytes": memory,
}
"""How some columns are shown; all others as their values are."""


DIGITS, FEWER = 6, 3
"""Of a fraction in a table, and of one where it would be too wide."""
REPORTS = "reports."
"""What columns of reports' figures begin with."""
DOT = re.compile(r"(?<!\d)\.|\.(?!\d)")
"""What parts of a name lie between: no decimal point, as `dpo.beta-0.3` has one."""
JUDGES = ("data.judges.", "config.judges.")
"""What columns of judges' files begin with: a judge's name alone means what it measured."""


@dataclass(frozen=True)
class Column:
    """A column that was asked for: as it was called there, and which fact it shows; of reports, each artifact's own."""

    title: str
    keys: Sequence[str]

    def of(self, facts: Mapping[str, object]) -> object:
        """Its value for an artifact; None where that has none."""
        return next((facts[key] for key in self.keys if facts.get(key) is not None), None)

    def text(self, value: object, digits: int) -> str:
        """A value as it stands in a table, a fraction with so many digits; nothing where an artifact has none."""
        if value is None:
            return ""
        key = self.keys[0]
        if isinstance(value, str) and key in SHOWN:
            return SHOWN[key](value)
        if isinstance(value, int | float) and key in SIZES:
            return SIZES[key](value)
        return f"{value:.{digits}g}" if isinstance(value, float) else value_text(value)


def facts_of(name: str, artifact: Artifact, cost: CostRecord | None, names: Mapping[str, str]) -> Json:
    """All that a column may show of an artifact, by its whole name: kind, stage, digest, size, finished, base,
    parents.ROLE, config.SETTING, metrics.FIGURE, data.SETTING, cost.WHAT. `names` has a name for digests."""
    model = artifact.base["model"].removeprefix(STORED) if artifact.base else None
    plain = {
        "name": name,
        "kind": artifact.kind,
        "stage": artifact.stage,
        "digest": artifact.digest,
        "size": artifact.size,
        "finished": cost.get("finished") if cost else None,
        "base": names.get(model, model) if model else None,
    }
    named = {role: names.get(parent, parent) for role, parent in artifact.parents.items()}
    paid = {key: value for key, value in (cost or {}).items() if key not in ("artifact", "finished")}
    parts = {"parents": named, "config": artifact.config, "metrics": artifact.metrics, "data": artifact.data}
    return plain | flat({**parts, "cost": paid})


def reports(store: Store) -> Iterator[tuple[str, Artifact, dict[str, str]]]:
    """Each named report: (name, report, digest of what it measured -> the label of that in its figures). A name
    that is damaged is told, as it may be one's."""
    damaged, seen = [*store.damaged_refs()], set[str]()
    for name, digest in store.sound_refs().items():
        try:
            report = store.load(digest)
        except AlignError:
            damaged.append(name)
            continue
        if report.kind == "report" and digest not in seen:
            seen.add(digest)
            yield name, report, {measured: role.rsplit("/", 1)[-1] for role, measured in report.parents.items()}
    for name in damaged:
        say(f"{name} is damaged (`align verify` tells more): should it be a report, its figures are missing here")


def _by_reports(store: Store) -> dict[str, Json]:
    """By digest, what reports measured of an artifact: reports.NAME.FIGURE."""
    found: dict[str, Json] = {}
    for name, report, labels in reports(store):
        for digest, label in labels.items():
            of = {key: value for key, value in report.metrics.items() if key.startswith(f"{label}/")}
            named = {f"{REPORTS}{name}.{key.removeprefix(f'{label}/')}": value for key, value in of.items()}
            found.setdefault(digest, {}).update(named)
    return found


def columns(asked: Sequence[str], rows: Sequence[Mapping[str, object]]) -> list[Column]:
    """The columns of these names: whole ones, or ends of them (`beta` is config.beta); a figure of several reports is
    that of each artifact's own.

    Raises: InputError for a name that no row has, that is the end of several, or that reports give an artifact
    different values of.
    """
    known = list(dict.fromkeys(key for row in rows for key in row))
    found = [Column(name, _meant(name, known)) for name in asked]
    for column in found:
        for row in rows:
            there = {key: row[key] for key in column.keys if row.get(key) is not None}
            if len({value_text(value) for value in there.values()}) > 1:
                measured = " and ".join(f"{value_text(value)} by {key}" for key, value in there.items())
                raise InputError(f"{column.title} of {row['name']} is {measured}; name one of them.")
    return found


def _ends(key: str, name: str) -> bool:
    """Whether a whole name ends so: behind a dot that is no decimal point, and within a report's name behind a slash,
    so that `report.accuracy` is what each seed's own report says."""
    behind_dot = key.endswith(f".{name}") and DOT.match(key, len(key) - len(name) - 1) is not None
    return behind_dot or (key.startswith(REPORTS) and "." in name and key.endswith(f"/{name}"))


def _meant(name: str, known: Sequence[str]) -> list[str]:
    if name in known:
        return [name]
    ends_so = [key for key in known if _ends(key, name) and not key.startswith(JUDGES)]
    own = [key for key in ends_so if not key.startswith(REPORTS)]
    if len(own) == 1 == len(ends_so) or (ends_so and not own):
        return ends_so
    if own:
        measured = [key for key in ends_so if key.startswith(REPORTS)]
        more = f" (and by {len(measured) - 1} more reports)" if len(measured) > 1 else ""
        raise InputError(f"{name} is {' and '.join([*own, *measured[:1]])}{more} here; name one of them.")
    ends = {end for key in known for end in (key.split(".", 1)[-1], DOT.split(key)[-1])}
    near = difflib.get_close_matches(name, ends.union(known) - {name}, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "`align show REF` lists what an artifact has."
    raise InputError(f"no artifact here has a column {name}; {hint}")


def with_columns(
    store: Store, rows: Sequence[Row], show: Sequence[str], sort: str | None = None, *, reverse: bool = False
) -> tuple[list[Row], list[Column]]:
    """Rows of `ls_rows` with what the columns `show` hold of each, and these columns. In the order of the column
    `sort`: numbers, then text, then those without it, the damaged among them.

    Raises: InputError for a column that no artifact of the rows has.
    """
    costs = store.costs()
    names: dict[str, str] = {}
    for name, digest in store.sound_refs().items():
        names.setdefault(digest, name)
    measured = _by_reports(store)
    facts = {
        row["name"]: facts_of(row["name"], store.load(row["digest"]), costs.get(row["digest"]), names)
        | measured.get(row["digest"], {})
        for row in rows
        if row["kind"] != "damaged"
    }
    shown = columns(show, list(facts.values()))
    found: list[Row] = [
        {**row, "shown": {column.title: column.of(facts.get(row["name"], {})) for column in shown}} for row in rows
    ]
    if sort is None:
        return found, shown
    (by,) = columns([sort], list(facts.values()))
    keys = {name: value for name, of in facts.items() if (value := by.of(of)) is not None}
    there = sorted((row for row in found if row["name"] in keys), key=lambda row: _place(keys[row["name"]]))
    last = [row for row in found if row["name"] not in keys]
    return [*(reversed(there) if reverse else there), *last], shown


def _place(value: object) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return not number, float(value) if isinstance(value, int | float) else 0.0, "" if number else value_text(value)


def _table(rows: Sequence[Row], shown: Sequence[Column], digits: int) -> list[list[str]]:
    lines = [["NAME", *(column.title for column in shown)]]
    for row in rows:
        lines.append([row["name"], *(column.text(row["shown"][column.title], digits) for column in shown)])
        lines[-1] += ["damaged: align verify"] * (row["kind"] == "damaged")
    return lines


def shown_table(rows: Sequence[Row], shown: Sequence[Column], width: int | None) -> str:
    """Names and the columns that were asked for, in at most `width` characters; numbers end on one edge."""
    lines = _table(rows, shown, DIGITS)
    if not fits(lines, width):
        lines = _table(rows, shown, FEWER)
    values = {column.title: [row["shown"][column.title] for row in rows] for column in shown}
    right = [i for i, of in enumerate(values.values(), 1) if not any(isinstance(value, str | list) for value in of)]
    return "\n".join(fitted(lines, width, right))
