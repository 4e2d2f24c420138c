"""`align compare` for a terminal: a letter for each run, tables that fit its width, and curves over each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from string import ascii_uppercase
from textwrap import fill

from align.report.compare import Comparison, Figures, cost_text, left_over, legend
from align.report.sketch import sketch
from align.report.summary import Estimate, interval, number
from align.report.text import SHORT, aligned, elided, fitted, told_apart, value_text

KEY, VALUE = 30, 24
"""Characters of a key, and of a value, at most."""
CURVES = 4
"""Curves that are drawn."""
NAMED = 4
"""Others that are named; of more it is said how many."""
PICTURE = 38
"""Characters that a picture is wide."""

Cells = Sequence[Sequence[str]]
"""For each run the lines of its cell."""


def compared_text(found: Comparison, width: int, html: str | None = None) -> str:
    """The comparison as lines of at most `width` characters; `html` is the page that was written of it, too."""
    runs = [[ascii_uppercase[i], r.name, f"{r.kind} by {r.stage}", r.digest[:SHORT]] for i, r in enumerate(found.runs)]
    blocks = [fitted(runs, width, name=1), [*_settings(found, width), *_alone(found)]]
    blocks += [_figures(figures, width) for figures in found.figures if figures.measures]
    blocks += [[fill(said, width) for said in legend(found, "*")], _cost(found, width), *_curves(found, width, html)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _settings(found: Comparison, width: int) -> list[str]:
    if not found.settings:
        return [f"No setting differs, of {found.same} that they share."]
    texts = {key: told_apart([value_text(value) for value in values], VALUE) for key, values in found.settings.items()}
    cells = {key: [[text] for text in row] for key, row in texts.items()}
    return [*table_of("settings that differ", cells, width), f"The same: {found.same}."]


def _alone(found: Comparison) -> Iterator[str]:
    """What is not compared, as not all runs have it."""
    for letters, keys in left_over(found):
        some = ", ".join(elided(key, KEY) for key in keys[:2])
        yield f"Of {letters}, but not of all: {len(keys)} ({some}{', …' * (len(keys) > 2)})."


def _figures(figures: Figures, width: int) -> list[str]:
    def cell(measure: str, place: int, estimate: Estimate | None) -> list[str]:
        if estimate is None:
            return ["-"]
        mark = "*" if figures.best.get(measure) == place else ""
        return [f"{number(estimate.value)}{mark}", *([interval(estimate)] if estimate.interval else [])]

    cells = {name: [cell(name, i, e) for i, e in enumerate(row)] for name, row in figures.measures.items()}
    same = [f"The same, as far as shown: {figures.same}."] if figures.same else []
    return [*table_of(f"figures {figures.where}", cells, width), *same]


def _cost(found: Comparison, width: int) -> list[str]:
    cells = {key: [[cost_text(value, key)] for value in values] for key, values in found.cost.items()}
    return table_of("cost", cells, width) if cells else []


def _curves(found: Comparison, width: int, html: str | None) -> Iterator[list[str]]:
    """Pictures beside each other, as many as fit; the letters are the runs'."""
    names = list(found.curves)
    across = max(1, width // (PICTURE + 2))
    pictures = [
        sketch(name, {ascii_uppercase[i].lower(): points for i, points in found.curves[name].items()}, PICTURE)
        for name in names[:CURVES]
    ]
    for start in range(0, len(pictures), across):
        rows = zip_longest(*pictures[start : start + across], fillvalue="")
        yield ["  ".join(line.ljust(PICTURE) for line in row).rstrip() for row in rows]
    if pictures:
        shows = f"{html} shows" if html else "--html FILE shows"
        rest = [*names[CURVES:][:NAMED], *([f"{len(names) - CURVES - NAMED} more"] if names[CURVES + NAMED :] else [])]
        more = f" Not drawn: {', '.join(rest)}, which {shows}." if rest else ""
        yield [fill(f"Letters are the runs above, + several of them.{more}", width)]


def table_of(
    title: str, rows: Mapping[str, Cells], width: int, heads: Sequence[str] = ascii_uppercase, longest: int = KEY
) -> list[str]:
    """A column for each run under its letter, or other heads; as many beside each other as fit, the others below.
    Keys have `longest` characters at most, unless all fit whole or it takes more to tell them apart."""
    count = len(next(iter(rows.values())))
    widths = [max(len(line) for cells in rows.values() for line in [*cells[i], heads[i]]) for i in range(count)]
    whole = max(map(len, [title, *rows])) + sum(2 + w for w in widths) <= width
    labels = dict(zip(rows, rows if whole else told_apart(list(rows), longest), strict=True))
    keys = max(map(len, [title, *labels.values()]))
    lines: list[str] = []
    first = 0
    while first < count:
        last = first + 1
        while last < count and keys + sum(2 + w for w in widths[first : last + 1]) <= width:
            last += 1
        table = [[title, *heads[first:last]]]
        for key, cells in rows.items():
            table += map(list, zip_longest([labels[key]], *cells[first:last], fillvalue=""))
        lines += [*([""] if lines else []), *aligned(table)]
        first = last
    return lines
