"""What other tools call our settings, from `elsewhere.md`, whose tables docs/coming-from.md shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

TRAINING = {"all that train": "stages that train", "all that train on records": "stages that train on records"}
"""How the tables say it -> what it is called in a sentence. Reinforcement learning looks at no held-out records."""


class Alias(NamedTuple):
    """What tools call so, our setting, the stages that have it (none for those of `all`), a note, and the values there
    that this setting is for, none for all; without a setting the note says why there is none."""

    theirs: tuple[str, ...]
    tools: tuple[str, ...]
    ours: str | None
    stages: tuple[str, ...]
    note: str
    values: tuple[str, ...] = ()
    all: str = "stages that train"


def hint(name: str, has: Callable[[str], bool], spell: Callable[[str], str] = str, value: object = None) -> str | None:
    """Half a sentence on a setting that another tool calls so: ours, which stages have it, or why there is none; None
    where no tool does.

    Args:
        has: whether there is such a setting here.
        spell: how one of ours is written.
        value: what it was given; where one of ours is for that value, it alone is named.
    """
    key, found = _called(name)
    ours = [row for row in found if row.ours]
    here = [row for row in ours if row.ours and has(row.ours)]
    if not found:
        return None
    if not ours:
        return f"there is nothing to set: {found[0].note}."
    here = [row for row in here if row.stages] or here  # what is meant for these stages, before what all have
    for_all = [row for row in here if not row.values]
    here = [row for row in here if value in row.values] or (for_all if value else here) or here
    rows = here or [row for row in ours if row.ours == key] or ours
    tools = [*dict.fromkeys(tool for row in rows for tool in row.tools)]
    names = _here(rows, spell) if here else " or ".join(dict.fromkeys(row.ours for row in rows if row.ours))
    stages = [*dict.fromkeys(stage for row in rows for stage in row.stages)] or [rows[0].all]
    is_one = len(stages) == 1 and bool(rows[0].stages)
    owners = f", which {_and(stages)} {'has' if is_one else 'have'}"
    if not here and names == key:
        return f"stages such as {_and(stages)} have it." if rows[0].stages else f"{stages[0]} have it."
    notes = [f" ({row.note})" for row in rows if row.note]
    of_one = len({row.stages for row in rows}) == 1  # what is said of one stage may not hold for another
    note = ("".join(notes[:1]) if of_one else "") if here else owners
    return f"{key} of {_and(tools)} is {names}{note}."


def _here(rows: list[Alias], spell: Callable[[str], str]) -> str:
    """Our settings as they are written, last what is for some values alone."""
    always = {row.ours for row in rows if not row.values}
    names = dict.fromkeys(spell(row.ours) for row in rows if row.ours and row.ours in always)
    some: dict[str, list[str]] = {}
    for row in rows:
        if row.ours and row.ours not in always:
            some.setdefault(spell(row.ours), []).extend(row.values)
    whole = [f"{' or '.join(names)} here"] if names else []
    return ", or ".join([*whole, *(f"{name} for {_and(values, 'or')}" for name, values in some.items())])


def of_value(key: str, value: str, spell: Callable[[str], str] = str) -> str | None:
    """A sentence on a value that another tool gives a setting which we call so too: ours for it; None where none
    does."""
    for tool, cells in _lines():
        if len(cells) > 3 and f"`{key}: {value}`" in cells[0]:
            return f"{key}: {value} of {tool} is {_and([*map(spell, _names(cells[1]))])} here ({cells[3]})."
    return None


def ours(name: str, has: Callable[[str], bool]) -> list[str]:
    """The settings that there are here for what another tool calls so."""
    return [row.ours for row in _called(name)[1] if row.ours and has(row.ours)]


def _called(name: str) -> tuple[str, list[Alias]]:
    """(a name's last part, what tools call so)."""
    key = name.rpartition(".")[2].replace("-", "_")
    return key, [row for row in _rows() if key in row.theirs]


def _and(words: list[str], last: str = "and") -> str:
    return f" {last} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


@cache
def _rows() -> list[Alias]:
    return [row for tool, cells in _lines() for row in _read(tool, cells)]


def _lines() -> Iterator[tuple[str, list[str]]]:
    """(heading, cells) of every row of the file's tables."""
    tool = ""
    for line in Path(__file__).with_suffix(".md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            tool = line.removeprefix("## ")
        elif line.startswith("| `"):
            yield tool, _cells(line)


def _read(tool: str, cells: list[str]) -> Iterator[Alias]:
    """The rows of a line, one for each setting of ours; a line of three cells says why there is none."""
    theirs = tuple(name.rpartition(".")[2] for name in _names(cells[0]))
    if len(cells) == 3:
        yield Alias(theirs, tuple(cells[1].split(", ")), None, (), cells[2])
        return
    values = tuple(_names(" ".join(re.findall(r"\(([^)]*)\)", cells[0]))))
    stages = tuple(_names(cells[2]))
    owners = TRAINING.get(cells[2], cells[2])
    for ours in _names(cells[1]):
        yield Alias(theirs, (tool,), ours, stages, cells[3], values, owners)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _names(cell: str) -> list[str]:
    """The code spans of a cell outside brackets; one with a value is no name."""
    spans = re.findall(r"`([^`]+)`", re.sub(r"\([^)]*\)", "", cell))
    return [span for span in spans if ":" not in span]
