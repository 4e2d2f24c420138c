"""The summary of a `Report` for a terminal: plain text, the same numbers as the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import fill

from align.report import summary
from align.report.summary import Estimate, Report

BAR = 20
"""Characters of the headline's full scale."""
WIDTH = 100
"""Columns of the text around the tables."""


def table(report: Report) -> str:
    """The verdict; headline and win rate of every stage and baseline, with a bar where the headline is a share; then
    all other measures; how to read it, and how it was measured."""
    measures = summary.measures(report)
    main = [measure for measure in measures if summary.is_main(report, measure)]
    others = [measure for measure in measures if measure not in main]
    said, legend, note = (fill(text, WIDTH) for text in (summary.verdict(report), summary.legend(report), report.note))
    blocks = [said, *(_block(report, part) for part in (main, others) if part), legend, note]
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


def _block(report: Report, measures: Sequence[str]) -> str:
    columns = [column for measure in measures for column in _columns(report, measure)]
    lines = [["", *(column.title for column in columns)]]
    for name in summary.rows(report):
        found = [summary.estimate(report, name, column.measure) for column in columns]
        lines.append(
            [summary.label(name), *(column.cell(e) if e else "" for column, e in zip(columns, found, strict=True))]
        )
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    left = [True, *(column.left for column in columns)]

    def text(line: list[str]) -> str:
        cells = zip(line, widths, left, strict=True)
        return "  ".join(cell.ljust(width) if to_left else cell.rjust(width) for cell, width, to_left in cells).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    heading, stages, baselines = lines[0], lines[1 : 1 + len(report.stages)], lines[1 + len(report.stages) :]
    return "\n".join([text(heading), rule, *map(text, stages), *([rule] if baselines else []), *map(text, baselines)])
