"""Several runs of one thing, such as a recipe under several seeds: the mean of each figure and its interval over runs. `align combine`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align import core
from align.errors import InputError
from align.report.text import aligned
from align.store import Artifact, Store


@dataclass(frozen=True)
class Combined:
    """One figure of every run, their mean, and Student's 95 % interval of what further runs would give on average."""

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float]


def combine(store: Store, refs: Sequence[str | Artifact]) -> tuple[dict[str, Combined], list[str]]:
    """Every figure that all artifacts have, by its name, and the names of those that only some have.

    Raises: InputError for fewer than two, one that is given twice, and artifacts of different stages.
    """
    runs = [store.resolve(ref) for ref in refs]
    if len(runs) < 2:
        raise InputError("one run has no spread; name two artifacts or more, such as the reports of a recipe under several seeds.")
    if twice := next((ref for i, ref in enumerate(refs) if runs[i].digest in {run.digest for run in runs[:i]}), None):
        raise InputError(f"{twice} is given twice: both would count as a run of its own. Name each artifact once.")
    if len({run.stage for run in runs}) > 1:
        raise InputError(f"{refs[0]} is made by {runs[0].stage}, another by another stage; name artifacts of one stage.")
    figures = [{k: float(v) for k, v in run.metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)} for run in runs]
    shared = [name for name in figures[0] if all(name in found for found in figures)]
    found = {}
    for name in shared:
        values = tuple(of_run[name] for of_run in figures)
        found[name] = Combined(values, sum(values) / len(values), core.intervals.mean_interval(values))
    return found, sorted({name for of_run in figures for name in of_run} - set(shared))


def combined_text(store: Store, refs: Sequence[str]) -> str:
    """A line a figure: name, mean, interval, and what each run gave."""
    found, others = combine(store, refs)
    rows = [["", "mean", "95 %", *refs]]
    for name, figure in found.items():
        low, high = figure.interval
        rows.append([name, f"{figure.mean:.4g}", f"{low:.4g} to {high:.4g}", *(f"{value:.4g}" for value in figure.values)])
    return "\n".join([*aligned(rows), *([f"not of every run: {', '.join(others)}"] if others else [])])
