"""Runs as people look at them: the same for one at work, which tells its news, and for one that is done, whose
artifact holds its curves."""

from __future__ import annotations

import time
from calendar import timegm
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from align.ground.terminal import one_line
from align.report.diff import Made, made
from align.report.glossary import by_importance
from align.report.training import read_rows, read_watched
from align.store import Artifact, LiveRun, Store
from align.store.live import is_figure

Curve = list[tuple[int, float]]
"""(step, value), ascending."""

HIDDEN = ("guard/warnings",)


@dataclass
class Shown:
    """One run. `state` of one that is neither at work nor done is stopped: it can go on, or it failed."""

    key: str
    """Names it among the runs of its store."""
    name: str
    stage: str
    state: Literal["runs", "stopped", "done"]
    when: float
    """Seconds since 1970: when it began, of one that is done when it ended; 0 where that is not known."""
    made: Made
    """What it was made with."""
    steps: int
    step: int = 0
    """The newest step that is told of."""
    left: float | None = None
    at: str = ""
    """What it is at, and how far that is, while it does not train."""
    curves: dict[str, Curve] = field(default_factory=dict)
    answers: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """(prompt, answer) by when they were given."""
    why: str = ""
    """By what error one that is stopped ended, on one line; "" where none is told."""


def named_artifact(store: Store, name: str) -> Shown | None:
    """What the artifact of that name shows of its training; None where there is no such name."""
    if name not in store.sound_refs():
        return None
    return of_artifact(store, store.resolve(name), name)


def of_live(run: LiveRun) -> Shown:
    """A run at work, or one that was stopped."""
    works = run.works
    return Shown(
        run.key,
        run.name,
        run.stage,
        "runs" if works else "stopped",
        run.began,
        Made(run.name, run.stage, run.settings, run.inputs, None),
        run.steps,
        run.step,
        run.left if works else None,
        run.at,
        curves(run.rows),
        run.answers,
        "" if works else one_line(" ".join(run.why.split())),
    )


def of_artifact(store: Store, artifact: Artifact, name: str, finished: str = "") -> Shown:
    """A run that is done, by what its artifact holds; without curves where nothing was trained. `finished` is an ISO
    time in UTC."""
    rows = [row for row in read_rows(store, artifact, "history.jsonl") if isinstance(row, dict)]
    found = curves((int(row["step"]), row) for row in rows if is_figure(row.get("step")))
    try:
        ended = float(timegm(time.strptime(finished, "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError:
        ended = 0.0
    steps = max((curve[-1][0] for curve in found.values()), default=0)
    of = made(name, artifact)
    shown = Shown(artifact.digest, name, artifact.stage, "done", ended, of, steps, steps, curves=found)
    for watched in read_watched(store, artifact, whole=True):
        for when, text in watched.answers:
            shown.answers.setdefault(when, []).append((watched.prompt, text))
    return shown


def curves(rows: Iterable[tuple[int, Mapping[str, object]]]) -> dict[str, Curve]:
    """Figures by metric, in the order in which people look at them."""
    found: dict[str, Curve] = {}
    for step, figures in rows:
        for name, value in figures.items():
            if name not in ("step", *HIDDEN) and is_figure(value):
                found.setdefault(name, []).append((step, float(value)))
    return {name: found[name] for name in by_importance(found)}
