"""The summary of a `Report` for a terminal: plain text, the same numbers as the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import fill

from align.ground.terminal import printable
from align.report import glossary, summary
from align.report.summary import Estimate, Report
from align.report.text import name_parts

BAR = 10
"""Characters of the headline's full scale."""
WIDTH = 79
"""Columns of the text, and of a table where the names of its rows leave room for one measure."""
NARROW = 12
"""Characters of a heading's line at least."""


def table(report: Report) -> str:
    """The verdict; headline and win rate of every stage and baseline, with a bar where the headline is a share; then
    all other measures; how to read it, and how it was measured."""
    measures = summary.measures(report)
    main = [measure for measure in measures if summary.is_main(report, measure)]
    others = [measure for measure in measures if measure not in main]
    legend = (glossary.legend(report), glossary.others(report), printable(glossary.paid(report)))
    texts = (summary.verdict(report), *legend, report.note)
    said, *below = (fill(text, WIDTH, break_on_hyphens=False) for text in texts)
    blocks = [said, *_blocks(report, main), *_blocks(report, others), *below]
    return "\n\n".join(block for block in blocks if block)


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    cell: Callable[[Estimate], str]
    measure: str
    left: bool = False


def _columns(report: Report, measure: str) -> list[_Column]:
    share = summary.is_share(report, measure)
    columns = [_Column(summary.label(measure), lambda e: summary.number(e.value, share), measure)]
    if measure == report.headline and share:
        columns.insert(0, _Column("", lambda e: "█" * round(BAR * e.value), measure, left=True))
    if any(e and e.interval for name in summary.rows(report) if (e := summary.estimate(report, name, measure))):
        columns.append(_Column("95 %", lambda e: summary.interval(e, share), measure, left=True))
    return columns


def _blocks(report: Report, measures: Sequence[str]) -> Iterator[str]:
    """Tables below each other, each of as many measures as fit."""
    rest = list(measures)
    while rest:
        fit = next((n for n in range(len(rest), 1, -1) if _width(_block(report, rest[:n])) <= WIDTH), 1)
        narrower = (_block(report, rest[:fit], heading) for heading in range(WIDTH, NARROW, -1))
        yield next((block for block in narrower if _width(block) <= WIDTH), None) or _block(report, rest[:fit], NARROW)
        rest = rest[fit:]


def _width(block: str) -> int:
    return max(map(len, block.split("\n")))


def _in_lines(title: str, width: int) -> list[str]:
    """A heading broken between words, and within a name behind its dots, hyphens and slashes."""
    lines = [""]
    for piece in (part for word in re.split("(?<= )", title) for part in name_parts(word)):
        if lines[-1] and len(f"{lines[-1]}{piece}".rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _block(report: Report, measures: Sequence[str], heading: int = WIDTH) -> str:
    """A table of the stages and baselines of which any of the measures is known; headings longer than `heading` take
    several lines."""
    columns = [column for measure in measures for column in _columns(report, measure)]
    titles = [_in_lines(title, heading) for title in ("", *(column.title for column in columns))]
    height = max(map(len, titles))
    headings = [*zip(*([""] * (height - len(title)) + title for title in titles), strict=True)]

    def rows(names: Sequence[str]) -> list[list[str]]:
        found = {name: [summary.estimate(report, name, column.measure) for column in columns] for name in names}
        return [
            [name, *(c.cell(e) if e else "" for c, e in zip(columns, estimates, strict=True))]
            for name, estimates in found.items()
            if any(estimates)
        ]

    stages, baselines = rows(report.stages), rows(report.baselines)
    lines = [*headings, *stages, *baselines]
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    left = [True, *(column.left for column in columns)]

    def text(line: Sequence[str]) -> str:
        cells = zip(line, widths, left, strict=True)
        return "  ".join(cell.ljust(width) if to_left else cell.rjust(width) for cell, width, to_left in cells).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join(
        [*map(text, headings), rule, *map(text, stages), *([rule] if baselines else []), *map(text, baselines)]
    )
