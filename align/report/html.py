"""One self-contained HTML page from a `Report`: readable on screen, in the dark, on a phone and on paper.

No script, no external file, no link, and its beginning (`PAGE`) tells browsers so. Every text that came from data or a
model is escaped by the template engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from align.ground.json import Json
from align.ground.terminal import printable
from align.report import glossary, summary
from align.report.summary import Report, Sample, ShownAnswer, Watched
from align.report.text import name_parts
from align.store.shapes import PAGE

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

Points = Sequence[tuple[float, float]]
Panel = tuple[str, Points, Points]
"""Name, training points, held-out points."""
MANY = 6
"""Stages of which each is shown at once; of more the curves are folded away but for those of the best three."""
SHOWN = 6
"""Prompts whose answers are shown at once; the others are folded away."""


def html(report: Report) -> str:
    """The page as text; write it as UTF-8."""
    from align.report import plots

    page = environment().get_template("page.html.jinja")
    seconds = [cost.get("seconds", 0.0) for cost in report.costs.values()]
    curves = {stage: _panels(metrics) for stage, metrics in report.curves.items() if metrics}
    named = [name for metrics in report.curves.values() for name in metrics]
    trained, best = list(dict.fromkeys([*curves, *report.settings])), summary.leaders(report)
    many = len(report.stages) > MANY
    opened = [name for name in trained if not many or name in best[: summary.NAMED]]
    body = page.render(
        report=report,
        verdict=summary.sentences(report),
        legend=glossary.legend(report),
        marks=glossary.marks(report),
        beside=glossary.others(report),
        paid=glossary.paid(report),
        pays=glossary.words_of(report, report.headline),
        best=best,
        columns=[_column(report, measure) for measure in summary.measures(report)],
        colours={name: index for index, name in enumerate(report.stages)},
        curves=curves,
        trained_stages=trained,
        meanings=glossary.explained([*named, *summary.measures(report)]),
        samples=[(sample.prompt, _folded(sample)) for sample in report.samples],
        same=_same,
        many=many,
        opened=opened,
        shown=SHOWN,
        headline=summary.label(report.headline),
        share=summary.is_share(report, report.headline),
        longest=max(seconds, default=0.0),
        total=sum(seconds),
        curve=plots.curve,
        against_kl=plots.against_kl,
    )
    return PAGE + printable(body)


def environment() -> Environment:
    """Templates of this room. Every text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from align.report import plots

    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "duration": summary.duration,
        "memory": summary.memory,
        "number": summary.number,
        "whole": _whole,
        "dash": plots.dash,
        "parts": _parts,
    }
    return found


def _parts(name: str, mark: Markup | None = None) -> Markup:
    """A name, escaped, in which a line may break where a part of it ends, and as long as it fits in no other place;
    none breaks behind the `mark` before it."""
    from markupsafe import Markup, escape

    parts = [*map(escape, name_parts(name))]
    if mark is not None:
        parts[:1] = [Markup('<span class="lead">{}{}</span>').format(mark, parts[0])]
    return Markup("<wbr>").join(parts)


def _whole(text: str, names: Sequence[str]) -> Markup:
    """A text, escaped, in which no line breaks within a name that fits, as browsers do behind a hyphen."""
    from markupsafe import Markup, escape

    hyphened = sorted((name for name in names if "-" in name), key=len, reverse=True)
    if not hyphened:
        return escape(text)
    known = "|".join(re.escape(str(escape(name))) for name in hyphened)
    found = rf"(?<![\w./-])(?:{known})(?![\w/-])"
    return Markup(
        re.sub(found, lambda name: f'<span class="whole">{"<wbr>".join(name_parts(name[0]))}</span>', str(escape(text)))
    )


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
        low, high = plots.axis(found, end=float(share))
        guided = estimates.get(reference)
        guide = guided.value if guided else None
        pictures = {name: plots.bar(e, low, high, guide) for name, e in estimates.items()}
        ends = tuple(summary.number(end, share).replace(".0%", "%") for end in (low, high))
    cells = {
        name: {
            "number": summary.number(e.value, share) if e else "",
            "interval": summary.interval(e, share) if e else "",
            "picture": pictures.get(name),
        }
        for name, e in estimates.items()
    }
    apart = reference if measure == summary.win_rate(report) and not estimates.get(reference) else None
    return {"label": summary.label(measure), "cells": cells, "ends": ends, "apart": apart}


def _panels(metrics: Mapping[str, Points]) -> tuple[list[Panel], list[Panel]]:
    """The main plots and the others, by importance: `eval/loss` joins `loss` where both exist."""
    joined = {name.removeprefix("eval/") for name in metrics} & set(metrics)
    panels = [
        (name, metrics[name], metrics.get(f"eval/{name}", ()))
        for name in glossary.by_importance(metrics)
        if name.removeprefix("eval/") not in joined or name in joined
    ]
    main = [panel for panel in panels if glossary.is_main(panel[0])]
    return main or panels, panels[len(main) :] if main else []


def _folded(sample: Sample) -> list[tuple[list[str], ShownAnswer]]:
    """(stages, their answer): those that say the same, and are scored the same, stand together."""
    by_answer: dict[ShownAnswer, list[str]] = {}
    for name, answer in sample.answers.items():
        by_answer.setdefault(answer, []).append(name)
    return [(names, answer) for answer, names in by_answer.items()]


def _same(watched: Watched) -> list[tuple[str, str]]:
    """(when, answer): what was said again the next time stands once."""
    runs = [(list(run), text) for text, run in groupby(watched.answers, key=itemgetter(1))]
    return [(", ".join(when for when, _ in run), text) for run, text in runs]
