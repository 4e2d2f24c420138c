"""One self-contained HTML page from a `Report`: readable on screen, in the dark, on a phone and on paper.

No script, no external file, no link, and its beginning (`PAGE`) tells browsers so. Every text that came from data or a
model is escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.ground.json import Json
from align.ground.terminal import printable
from align.report import summary
from align.report.summary import Report
from align.store.shapes import PAGE

if TYPE_CHECKING:
    from markupsafe import Markup

Points = Sequence[tuple[float, float]]


def html(report: Report) -> str:
    """The page as text; write it as UTF-8."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from align.report import plots

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "label": summary.label,
        "duration": summary.duration,
        "memory": summary.memory,
        "number": summary.number,
    }
    page = environment.get_template("page.html.jinja")
    seconds = [cost.get("seconds", 0.0) for cost in report.costs.values()]
    curves = {stage: _panels(metrics) for stage, metrics in report.curves.items() if metrics}
    body = page.render(
        report=report,
        verdict=summary.verdict(report),
        legend=summary.legend(report),
        best=summary.leaders(report),
        columns=[_column(report, measure) for measure in summary.measures(report)],
        colours={name: index for index, name in enumerate(report.stages)},
        curves=curves,
        share=summary.is_share(report, report.headline),
        longest=max(seconds, default=0.0),
        total=sum(seconds),
        curve=plots.curve,
        against_kl=plots.against_kl,
    )
    return PAGE + printable(body)


def _column(report: Report, measure: str) -> Json:
    """One measure of the summary: its heading, per row the number, its interval and, for main measures, a picture with
    its axis' `ends`.

    `apart` is the row that the measure compares the others with.
    """
    from align.report import plots

    share = summary.is_share(report, measure)
    estimates = {name: summary.estimate(report, name, measure) for name in summary.rows(report)}
    found = [e for e in estimates.values() if e]
    pictures: dict[str, Markup] = {}
    ends: tuple[str, ...] = ()
    reference = report.reference
    if measure == summary.win_rate(report):
        pictures = {name: plots.dot(e, 0.0, 1.0, 0.5) for name, e in estimates.items()}
        ends = (f"{reference} wins", "even", "stage wins")
    elif measure == report.headline:
        low = 0.0 if share else min(0.0, *(e.value for e in found))
        high = 1.0 if share else max(e.value for e in found)
        guided = estimates.get(reference)
        guide = guided.value if guided else None
        pictures = {name: plots.bar(e, low, high if high > low else low + 1, guide) for name, e in estimates.items()}
        ends = (summary.number(low, share).removesuffix(".0"), summary.number(high, share).removesuffix(".0"))
    cells = {
        name: {
            "number": summary.number(e.value, share) if e else "",
            "interval": summary.interval(e, share) if e else "",
            "picture": pictures.get(name),
        }
        for name, e in estimates.items()
    }
    apart = reference if measure == summary.win_rate(report) and not estimates.get(reference) else None
    return {"label": summary.label(measure), "share": share, "cells": cells, "ends": ends, "apart": apart}


def _panels(metrics: Mapping[str, Points]) -> list[tuple[str, Points, Points]]:
    """(name, training points, held-out points) of each plot: `eval/loss` joins `loss` where both exist."""
    joined = {name.removeprefix("eval/") for name in metrics} & set(metrics)
    return [
        (name, points, metrics.get(f"eval/{name}", ()))
        for name, points in metrics.items()
        if name.removeprefix("eval/") not in joined or name in joined
    ]
