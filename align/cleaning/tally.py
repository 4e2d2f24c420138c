"""What became of rows: counted by reason, with examples, and the originals of what was removed or changed."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from align.data.counts import slug
from align.data.records import Row
from align.data.shapes.columns import absent, told_absent
from align.data.shapes.keys import named
from align.ground.json import Json
from align.ground.terminal import one_line

EXAMPLES = 2
SHOWN, COLUMNS = 60, 80
"""Characters of a text that an example shows, and of a line."""


@dataclass
class Cleaned:
    """A row on its way: as it was given, as it is now, and what was done to it."""

    number: int
    """Its place in the input, from 0."""
    where: str
    """The name of its file, and where it stands there."""
    given: Row | None
    """None where it could not be read."""
    row: Row
    changes: list[str] = field(default_factory=list)
    """Reasons for what was changed of it."""
    removed: str = ""
    """Why it goes; "" where it stays."""
    detail: str = ""
    """What more there is to say of that, such as which row it repeats."""

    def aside(self) -> Json:
        """The line of the file of originals."""
        reasons = [self.removed] if self.removed else self.changes
        more: Json = {"detail": self.detail} if self.detail else {}
        return {
            "number": self.number,
            "where": self.where,
            "kept": not self.removed,
            "reasons": reasons,
            **more,
            "row": self.given,
        }


def place_of(where: str, path: Path) -> str:
    """Where a row stands in the file, pattern or folder `path`, or what is said of it, without the folders above."""
    return where.removeprefix(f"{path.parent}/")


class Tally:
    """How many rows were removed and changed, by reason, each with the places of the first two; keys with text that is
    not cleaned, and columns that no row has."""

    def __init__(self, absent: Mapping[str, str]) -> None:
        self.absent = absent
        self.left: dict[str, None] = {}
        self.rows = self.kept = 0
        self.removed: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def note(self, row: Cleaned, excerpt: str, left: Iterable[str]) -> None:
        """Count a row, whose keys in `left` hold text that is not cleaned."""
        self.rows += 1
        self.kept += not row.removed
        self.left |= dict.fromkeys(left)
        self.absent = absent(row.row, self.absent)
        reasons = [row.removed] if row.removed else row.changes
        (self.removed if row.removed else self.changed).update(dict.fromkeys(reasons, 1))
        for reason in reasons:
            shown = self.examples.setdefault(reason, [])
            if len(shown) < EXAMPLES:
                shown.append(f"{row.where}: {row.detail.removeprefix(f'{row.where}: ') or one_line(excerpt[:SHOWN])}")

    def metrics(self) -> dict[str, int]:
        """For the manifest: removed/exact_duplicate."""
        counts = (("removed", self.removed), ("changed", self.changed))
        return {"rows": self.rows, "kept": self.kept} | {
            f"{what}/{slug(reason)}": n for what, some in counts for reason, n in some.items()
        }

    def figures(self) -> Json:
        """For the report: counts and examples by reason."""

        def by_reason(counts: Counter[str]) -> Json:
            return {reason: {"rows": n, "examples": self.examples[reason]} for reason, n in counts.most_common()}

        return {
            "rows": self.rows,
            "kept": self.kept,
            "removed": by_reason(self.removed),
            "changed": by_reason(self.changed),
            "left_as_they_are": list(self.left),
        }

    def lines(self) -> list[str]:
        """The same for people, each example below its reason."""
        found = [("removed", reason, n) for reason, n in self.removed.most_common()]
        found += [("changed", reason, n) for reason, n in self.changed.most_common()]
        lines = []
        for what, reason, n in found:
            lines.append(f"{what}  {n:>7,}  {reason}")
            lines += [line for example in self.examples[reason] for line in _below(example)]
        lines += [f"left as they are: {named(list(self.left))}"] if self.left else []
        return [*lines, told_absent(self.absent)] if self.absent else lines


def _below(text: str) -> list[str]:
    indent = " " * 18
    return textwrap.wrap(text, COLUMNS, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
