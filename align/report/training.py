"""What a stage left of its training, read from its artifact for the report: curves, the guard's warnings, watched
prompts. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from string import ascii_uppercase
from typing import Any, TypedDict

from align.ground.errors import AlignError
from align.report.summary import Reinforced, Watched
from align.store import Artifact, Store

Points = list[tuple[float, float]]


class WatchedAnswer(TypedDict):
    """An answer of watched.jsonl, after so many steps or rollouts."""

    after: int
    text: str


def read_curves(store: Store, artifact: Artifact) -> dict[str, Points]:
    """Training curves by metric, from the artifact's history."""
    curves: dict[str, Points] = {}
    for row in read_rows(store, artifact, "history.jsonl"):
        for name, value in row.items():
            if name not in ("step", "learning_rate", "grad_norm", "guard/warnings") and not name.endswith("/std"):
                curves.setdefault(name, []).append((row["step"], value))
    return curves


def of_the_end(artifact: Artifact, curves: Collection[str]) -> list[str]:
    """Which figures are of a run's last steps, where `keep: best` kept the weights of an earlier one; none else."""
    kept, steps = (artifact.metrics.get(name) for name in ("kept/step", "steps"))
    if not isinstance(kept, int) or not isinstance(steps, int) or kept == steps:
        return []
    return [name for name in sorted(curves) if name in artifact.metrics and not name.startswith("eval/")]


def kept_text(store: Store, artifact: Artifact) -> list[str]:
    """Which figures are of the weights that are kept, and which of the end, in a sentence; none where all are."""
    found = of_the_end(artifact, read_curves(store, artifact)) if "kept/step" in artifact.metrics else []
    end = f"of the last steps of training, up to {artifact.metrics.get('steps')}: {', '.join(found)}"
    return [f"step {artifact.metrics['kept/step']}, whose weights eval/… are of; {end}"] if found else []


def kept_in_words(runs: Sequence[Artifact], curves: Sequence[Collection[str]]) -> list[str]:
    """The same of several runs, by their letters."""
    of_end = [of_the_end(run, found) for run, found in zip(runs, curves, strict=True)]
    kept = [
        f"step {run.metrics['kept/step']} of {run.metrics['steps']} ({letter})"
        for letter, run, found in zip(ascii_uppercase, runs, of_end, strict=False)
        if found
    ]
    figures = dict.fromkeys(figure for found in of_end for figure in found)
    end = f"of the last steps of training there: {', '.join(figures)}"
    return [f"Kept: {', '.join(kept)}, whose weights eval/… are of; {end}."] if kept else []


def read_reinforced(store: Store, artifact: Artifact) -> Reinforced | None:
    """What a stage shows beside its curves: of reinforcement learning all, of others the guard's warnings and watched
    prompts; None where there is nothing."""
    history = read_rows(store, artifact, "history.jsonl")
    if not history or "reward/mean" not in history[0] or "kl" not in history[0]:
        found = Reinforced({}, read_warnings(store, artifact), read_watched(store, artifact))
        return found if found.warnings or found.watched else None
    weights = artifact.config.get("weights")
    monitors = [name for name, weight in weights.items() if weight == 0] if isinstance(weights, dict) else []
    names = {"reward/mean": "trained reward", **{f"reward/{name}": f"{name}, not trained on" for name in monitors}}
    return Reinforced(
        {label: over_distance(history, name) for name, label in names.items() if name in history[0]},
        read_warnings(store, artifact),
        read_watched(store, artifact),
    )


def read_watched(store: Store, artifact: Artifact, *, whole: bool = False) -> list[Watched]:
    """The watched prompts, each with some of its answers, or the `whole` of them."""
    pick = told if whole else some
    return [
        Watched("\n".join(m["content"] for m in row["prompt"]), pick(row["answers"], row.get("unit", "rollout")))
        for row in read_rows(store, artifact, "watched.jsonl")
    ]


def over_distance(history: Sequence[dict[str, float]], name: str) -> Points:
    """(sqrt(KL), reward) of each logged rollout; lines of the same rollout are one point. An estimate below 0 is taken
    as 0."""
    points: Points = []
    for row in history:
        point = (math.sqrt(max(row["kl"], 0.0)), row[name])
        if point not in points[-1:]:
            points.append(point)
    return points


def some(answers: Sequence[WatchedAnswer], unit: str = "rollout") -> list[tuple[str, str]]:
    """The first, the middle and the last answer, with when they were given; `unit` is what the run is counted in."""
    chosen = sorted({0, len(answers) // 2, len(answers) - 1}) if answers else []
    return told([answers[i] for i in chosen], unit)


def told(answers: Sequence[WatchedAnswer], unit: str) -> list[tuple[str, str]]:
    """Answers, with when they were given."""
    return [(when(unit, a["after"]), a["text"]) for a in answers]


def when(unit: str, after: int) -> str:
    """The moment after so many steps or rollouts, in words."""
    return f"after {unit} {after}" if after else "at the start"


def read_warnings(store: Store, artifact: Artifact) -> list[str]:
    """The guard's warnings, one printable line each.

    Raises: AlignError where the file holds something else: it may come from elsewhere.
    """
    try:
        return [_warning(row) for row in read_rows(store, artifact, "guard.jsonl")]
    except (ValueError, KeyError, TypeError) as error:
        raise AlignError(
            f"{artifact.short}: guard.jsonl is not what a guard writes ({type(error).__name__})."
        ) from error


def _warning(row: Mapping[str, str | int | None]) -> str:
    until = f" to {row['gone']}" if row["gone"] is not None else ""
    unit = "rollout" if "rollout" in row else "step"
    when = row[unit]
    if not isinstance(when, int):
        raise TypeError(f"{unit} is {when!r}")
    text = f"{row['sign']}, {unit} {when + 1}{until}: {row['message']}"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def read_rows(store: Store, artifact: Artifact, file: str) -> list[dict[str, Any]]:
    """The rows of one of an artifact's JSONL files; none where it has no such file."""
    if file not in artifact.files:
        return []
    return [json.loads(line) for line in store.read(artifact, file).decode().splitlines()]
