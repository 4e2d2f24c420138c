"""Several runs of one thing, such as a recipe under several seeds: the mean of each figure and its interval over runs.
`align combine`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from string import ascii_uppercase
from textwrap import fill

from align import measures
from align.ground.errors import InputError
from align.report.columns import reports
from align.report.compare import judged_by
from align.report.compare_text import table_of
from align.report.summary import as_estimate, may_be_share
from align.report.text import aligned, fits, fitted
from align.store import Artifact, Store

NOT_NEGATIVE = ("kl", "calibration_error", "length", "perplexity", "grad_norm", "warnings")
"""Figures that are no shares and never below 0."""


@dataclass(frozen=True)
class Combined:
    """One figure of every run, their mean, and Student's 95 % interval of what further runs would give on average; None
    of two runs, whose one degree of freedom says nothing, and where all are equal."""

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None


def combine(store: Store, refs: Sequence[str | Artifact]) -> tuple[dict[str, Combined], list[str]]:
    """Every figure that all artifacts have, also by reports, by its name, and the names of those that only some have.

    The interval of a share, by its name and its values, is kept within 0 and 1, that of another figure that cannot be
    negative above 0, where Student's knows no end. What else than settings differs, `unlike` says.

    Raises: InputError for fewer than two, one that is given twice, artifacts of different stages, settings that differ
        beside the seed, and artifacts without a figure in common.
    """
    runs = [store.resolve(ref) for ref in refs]
    if len(runs) < 2:
        raise InputError(
            "one run has no spread; name two artifacts or more, such as the reports of a recipe under several seeds."
        )
    if twice := next((ref for i, ref in enumerate(refs) if runs[i].digest in {run.digest for run in runs[:i]}), None):
        raise InputError(f"{twice} is given twice: both would count as a run of its own. Name each artifact once.")
    if other := next(((ref, run) for ref, run in zip(refs, runs, strict=True) if run.stage != runs[0].stage), None):
        raise InputError(
            f"{refs[0]} is made by {runs[0].stage}, {other[0]} by {other[1].stage}; name artifacts of one stage."
        )
    for ref, run in zip(refs[1:], runs[1:], strict=True):
        if differ := sorted(
            k for k in {*run.config, *runs[0].config} - {"seed"} if _setting(run, k) != _setting(runs[0], k)
        ):
            raise InputError(
                f"{refs[0]} and {ref} differ in their settings {', '.join(differ)}, so they are no two runs of one "
                f"thing; name artifacts that differ in their seed alone (`align diff {refs[0]} {ref}` shows all)."
            )
    measured, judged = _by_reports(store, runs, [str(ref) for ref in refs])
    figures = [of_report | _numbers(run.metrics) for run, of_report in zip(runs, measured, strict=True)]
    shared = [name for name in figures[0] if all(name in found for found in figures)]
    if not shared:
        raise InputError(
            f"{' and '.join(map(str, refs))} have no figure in common, so there is nothing to combine (stage "
            f"{runs[0].stage})."
        )
    judged |= _shares(runs)
    found = {}
    for name in shared:
        values = tuple(of_run[name] for of_run in figures)
        found[name] = Combined(values, sum(values) / len(values), _interval(values, *_ends(name, values, judged)))
    return found, sorted({name for of_run in figures for name in of_run} - set(shared))


def _numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    return {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _shares(reports: Sequence[Artifact]) -> set[str]:
    """What judges measured that may be a share: no interval of it leaves [0, 1]."""
    found = {name for report in reports for name in judged_by(report.config)}
    for report in reports:
        for name in report.metrics:
            estimate = as_estimate(report.metrics, name)
            if estimate and estimate.interval and not all(0 <= end <= 1 for end in estimate.interval):
                found.discard(name.rsplit("/", 1)[-1])
    return found


def _by_reports(store: Store, runs: Sequence[Artifact], refs: Sequence[str]) -> tuple[list[dict[str, float]], set[str]]:
    """What named reports measured of each run, by the last part of the report's name, report/gold, or by all of it
    where two of one part have different values, of which one that measured all runs goes first, then that of the run's
    own recipe and seed; and what judges measured that may be a share."""
    found: list[dict[str, dict[str, float]]] = [{} for _ in runs]
    read: list[Artifact] = []
    for name, report, labels in reports(store):
        for run, of_run in zip(runs, found, strict=True):
            if run.digest in labels:
                read.append(report)
                begin = f"{labels[run.digest]}/"
                for key, value in _numbers(report.metrics).items():
                    if key.startswith(begin):
                        short = f"{name.rsplit('/', 1)[-1]}/{key.removeprefix(begin)}"
                        of_run.setdefault(short, {})[f"{name}/{key.removeprefix(begin)}"] = value
    figures: list[dict[str, float]] = [{} for _ in runs]
    for short in dict.fromkeys(short for of_run in found for short in of_run):
        each = [of_run.get(short, {}) for of_run in found]
        of_all = [report for report in each[0] if all(report in values for values in each)]
        for ref, values, told in zip(refs, each, figures, strict=True):
            own = f"{ref.rpartition('/')[0]}/{short.partition('/')[0]}/"
            first = of_all or [report for report in values if report.startswith(own)]
            meant = {values[report] for report in first or values}
            if len(meant) == 1:
                told[short] = meant.pop()
                values = {report: value for report, value in values.items() if first and report not in first}
            told |= values
    return figures, _shares(read)


def _ends(name: str, values: Sequence[float], judged: set[str]) -> tuple[float, float]:
    """What a figure of this name cannot go beyond."""
    what = name.rsplit("/", 1)[-1]
    if may_be_share(what, judged) and all(0 <= value <= 1 for value in values):
        return 0.0, 1.0
    return 0.0 if what in NOT_NEGATIVE and min(values) >= 0 else -inf, inf


def _interval(values: Sequence[float], least: float, most: float) -> tuple[float, float] | None:
    if len(values) < 3 or len(set(values)) == 1:
        return None
    low, high = measures.intervals.mean_interval(values)
    return max(low, least), min(high, most)


def _setting(run: Artifact, name: str) -> object:
    """A setting; what evaluate compares `against` by its name in the results, as every run may have a prefix of its
    own."""
    value = run.config.get(name)
    return value.rsplit("/", 1)[-1] if name == "against" and isinstance(value, str) else value


def combined_text(found: Mapping[str, Combined], others: Sequence[str], refs: Sequence[str], width: int) -> str:
    """What `combine` found, a line a figure: name, mean, interval over the runs, and what each run gave; where that is
    wider than `width`, the runs stand above and have letters, or numbers, below; where that is, too, what each gave has
    tables of its own."""
    means = {name: [f"{figure.mean:.4g}", *_over(figure)] for name, figure in found.items()}
    gave = {name: [f"{value:.4g}" for value in figure.values] for name, figure in found.items()}
    heads = ["mean", "95 %"] if len(refs) > 2 else ["mean"]
    said = f"95 %: Student's interval of the mean, over these {len(refs)} runs."
    if len(refs) == 2:
        said = "Two runs give no interval: Student's, of one degree of freedom, is too wide to say anything."
    notes = [fill(said, width), *([fill(f"not of every run: {', '.join(others)}", width)] if others else [])]
    called = ascii_uppercase if len(refs) <= len(ascii_uppercase) else [str(i + 1) for i in range(len(refs))]
    runs = fitted([list(pair) for pair in zip(called, refs, strict=False)], width, name=1)
    for above, names in (([], refs), ([*runs, ""], called[: len(refs)])):
        rows = [["", *heads, *names], *([name, *means[name], *gave[name]] for name in found)]
        if fits(rows, width):
            return "\n".join([*above, *aligned(rows), *notes])
    tables: list[str] = []
    for cells, names in ((means, heads), (gave, called)):
        in_lines = {name: [[cell] for cell in row] for name, row in cells.items()}
        tables += ["", *table_of("", in_lines, width, names, max(12, width - 36))]
    return "\n".join([*runs, *tables, *notes])


def _over(figure: Combined) -> list[str]:
    """The interval as it stands in a line; of two runs there is no such column."""
    if len(figure.values) < 3:
        return []
    return [f"{figure.interval[0]:.4g} to {figure.interval[1]:.4g}" if figure.interval else "all equal"]
