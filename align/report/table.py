"""The summary of a `Report` for a terminal: plain text, the same numbers as the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import fill

from align.report import glossary, summary
from align.report.summary import Estimate, Report

BAR = 10
"""Characters of the headline's full scale."""
WIDTH = 79
"""Columns of the text, and of a table where one measure takes no more."""


def table(report: Report) -> str:
    """The verdict; headline and win rate of every stage and baseline, with a bar where the headline is a share; then
    all other measures; how to read it, and how it was measured."""
    measures = summary.measures(report)
    main = [measure for measure in measures if summary.is_main(report, measure)]
    others = [measure for measure in measures if measure not in main]
    texts = (summary.verdict(report), glossary.legend(report), glossary.others(report), report.note)
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
        yield _block(report, rest[:fit])
        rest = rest[fit:]


def _width(block: str) -> int:
    return max(map(len, block.split("\n")))


def _block(report: Report, measures: Sequence[str]) -> str:
    """A table of the stages and baselines of which any of the measures is known."""
    columns = [column for measure in measures for column in _columns(report, measure)]
    heading = ["", *(column.title for column in columns)]

    def rows(names: Sequence[str]) -> list[list[str]]:
        found = {name: [summary.estimate(report, name, column.measure) for column in columns] for name in names}
        return [
            [name, *(c.cell(e) if e else "" for c, e in zip(columns, estimates, strict=True))]
            for name, estimates in found.items()
            if any(estimates)
        ]

    stages, baselines = rows(report.stages), rows(report.baselines)
    lines = [heading, *stages, *baselines]
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    left = [True, *(column.left for column in columns)]

    def text(line: list[str]) -> str:
        cells = zip(line, widths, left, strict=True)
        return "  ".join(cell.ljust(width) if to_left else cell.rjust(width) for cell, width, to_left in cells).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([text(heading), rule, *map(text, stages), *([rule] if baselines else []), *map(text, baselines)])
