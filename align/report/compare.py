"""Runs beside each other, behind `align compare`: settings that differ, figures with their intervals, cost, curves. No
torch.

A figure is surely the best where its 95 % interval lies apart from those of all others; without intervals no figure is.
Figures of one report were measured on the same prompts and so are the ones to compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from string import ascii_uppercase
from typing import TypeVar

from align.ground.errors import AlignError, InputError
from align.ground.json import Json
from align.report.columns import reports
from align.report.diff import ABSENT, Defaults, apart, equal, made
from align.report.glossary import by_importance, left_out, of_several_kinds
from align.report.lists import matching
from align.report.summary import Estimate, as_estimate, duration, interval, memory, number
from align.report.text import SHORT, name_of
from align.report.training import Points, kept_in_words, read_curves
from align.store import Artifact, Store

T = TypeVar("T")
RUNS_LIMIT = 26
"""Runs beside each other: each has a letter."""
BETTER_HIGHER = ("accuracy", "accuracies", "reward")
"""Ends of figures of which more is better, beside win rates and what judges measure; of others nobody says."""
FEW = 3
"""Figures of one run alone that are named."""
COSTS: dict[str, Callable[[float], str]] = {
    "seconds": duration,
    "tokens_per_second": "{:,.0f}".format,
    "peak_memory_bytes": memory,
}


@dataclass(frozen=True)
class Compared:
    """One of the runs that are compared."""

    name: str
    digest: str
    kind: str
    stage: str


@dataclass(frozen=True)
class Figures:
    """What was measured of the runs, in one place: by measure an estimate for each run, None where it has none."""

    where: str
    measures: Mapping[str, Sequence[Estimate | None]]
    best: Mapping[str, int]
    """Measure -> the run that is surely the best by it."""
    same: int = 0
    """Measures by which all runs that have them are equal, in the digits that are shown, and so left out."""


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other; what is listed for each run is in their order."""

    runs: Sequence[Compared]
    settings: Mapping[str, Sequence[object]]
    """Those that differ; a run without one has `ABSENT`."""
    same: int
    """How many settings do not."""
    alone: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of different stages: settings that not all have and that do not differ where they are, by run."""
    figures: Sequence[Figures] = ()
    cost: Mapping[str, Sequence[object]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[int, Points]] = field(default_factory=dict)
    """Metric -> its points, by the run's place; those that two runs or more have."""
    notes: Sequence[str] = ()
    """What a reader has to know: runs that are one artifact, and what is not compared."""


HELD_OUT_BY = {"stage", "seed", "hold_out", "eval_fraction"}
"""What decides, beside the data, which records a run's own figures are of."""


def compare(store: Store, refs: Sequence[str], defaults: Defaults = lambda _: {}) -> Comparison:
    """`refs`, patterns among them, beside each other. A setting that some have at its default and others not at all, as
    it has no effect there, does not differ.

    Raises: InputError for fewer than two, or an unknown one; AlignError when one is damaged.
    """
    names = list(dict.fromkeys(matching(store, refs)))
    if not 2 <= len(names) <= RUNS_LIMIT:
        raise InputError(f"{len(names)} run{'s' * (len(names) != 1)} to compare; name from two to {RUNS_LIMIT}.")
    artifacts = [store.resolve(name) for name in names]
    names = [name_of(store, a, name) for name, a in zip(names, artifacts, strict=True)]
    runs = [Compared(name, a.digest, a.kind, a.stage) for name, a in zip(names, artifacts, strict=True)]
    differ, same, alone = apart(store, [made(name, a) for name, a in zip(names, artifacts, strict=True)], defaults)
    costs = store.costs()
    paid = [{key: costs.get(a.digest, {}).get(key) for key in COSTS} for a in artifacts]
    measured, histories = [_measured(a) for a in artifacts], [_history(store, a) for a in artifacts]
    mixed = of_several_kinds(
        (artifact.stage, artifact.config.get("loss"), [*one, *other])
        for artifact, one, other in zip(artifacts, measured, histories, strict=True)
    )
    measured, histories = [_without(mixed, one) for one in measured], [_without(mixed, one) for one in histories]
    own = _figures("of each run", measured, _judged(artifacts), artifacts)
    if differ.keys() & HELD_OUT_BY or any(artifact.data != artifacts[0].data for artifact in artifacts):
        own = replace(own, best={})  # each was measured on records of its own
    return Comparison(
        runs,
        differ,
        same,
        alone,
        [*_reports(store, artifacts), own],
        {key: [of[key] for of in paid] for key in COSTS if any(of[key] is not None for of in paid)},
        _curves(histories),
        [
            *_one_artifact(runs),
            *_of_one_alone(measured),
            *_kinds_of_loss(artifacts),
            *left_out(mixed),
            *kept_in_words(artifacts, histories),
            *_no_curve(histories),
        ],
    )


def as_json(found: Comparison) -> Json:
    """A comparison for programs, but for the curves, which are each artifact's history.jsonl."""
    plain = asdict(found)
    del plain["curves"]
    for part, figures in zip(plain["figures"], found.figures, strict=True):
        part["best"] = {measure: found.runs[place].name for measure, place in figures.best.items()}
    return plain


def left_over(found: Comparison) -> list[tuple[str, Sequence[str]]]:
    """(letters of the runs, settings that they have and not all others): runs that are alike together."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for letter, run in zip(ascii_uppercase, found.runs, strict=False):
        if keys := found.alone.get(run.name):
            alike.setdefault(tuple(keys), []).append(letter)
    return [(", ".join(letters), keys) for keys, letters in alike.items()]


def legend(found: Comparison, mark: str) -> list[str]:
    """What the mark beside figures means, or why none is there; and what is not compared."""
    if len({run.digest for run in found.runs}) == 1:
        return [*found.notes]
    if not any(part.measures for part in found.figures):
        said = "These runs share no figure that differs; `align evaluate` measures adapters on the same prompts."
    elif any(part.best for part in found.figures):
        said = f"{mark} surely the best: its 95 % interval lies apart from those of all others."
    elif any(e and e.interval for part in found.figures for row in part.measures.values() for e in row):
        said = "No figure is marked the best: 95 % intervals overlap."
    else:
        said = "No figure that differs has an interval, so none is marked the best; `align evaluate` gives them."
    return [said, *found.notes]


def _one_artifact(runs: Sequence[Compared]) -> list[str]:
    """A sentence for each artifact that is there under several letters."""
    letters: dict[str, list[str]] = {}
    for letter, run in zip(ascii_uppercase, runs, strict=False):
        letters.setdefault(run.digest, []).append(letter)
    return [
        f"{', '.join(of[:-1])} and {of[-1]} are one artifact, {digest[:SHORT]}."
        for digest, of in letters.items()
        if len(of) > 1
    ]


def _of_one_alone(measured: Sequence[Mapping[str, Estimate]]) -> list[str]:
    """Which figures one run alone has, and so are not shown."""
    counts = Counter(name for one in measured for name in one)
    alone = [[name for name in one if counts[name] == 1] for one in measured]
    return [
        f"Of its own figures {letter} alone has {', '.join(names[:FEW])}{', …' * (len(names) > FEW)}."
        for letter, names in zip(ascii_uppercase, alone, strict=False)
        if names
    ]


def _kinds_of_loss(artifacts: Sequence[Artifact]) -> list[str]:
    """Why losses are left out; nothing where they are of one kind."""
    if not any("loss" in artifact.metrics for artifact in artifacts):
        return []
    if len({artifact.stage for artifact in artifacts}) > 1:
        return ["Stages differ, and each has a loss of its own kind, so that is left out."]
    if not equal([artifact.config.get("loss", ABSENT) for artifact in artifacts]):
        said = "The setting loss differs, so each loss is of its own kind and is left out"
        return [f"{said}; the same beta means another thing to each." if "beta" in artifacts[0].config else f"{said}."]
    return []


def cost_text(value: object, key: str) -> str:
    """One of `COSTS` for reading."""
    return COSTS[key](value) if isinstance(value, int | float) else "-"


def _without(names: Collection[str], found: Mapping[str, T]) -> dict[str, T]:
    return {name: value for name, value in found.items() if name not in names}


def _measured(artifact: Artifact, prefix: str = "") -> dict[str, Estimate]:
    """An artifact's figures whose names begin so, without the beginning."""
    names = [name.removeprefix(prefix) for name in artifact.metrics if name.startswith(prefix)]
    found = {name: as_estimate(artifact.metrics, f"{prefix}{name}") for name in names}
    return {name: estimate for name, estimate in found.items() if estimate}


def _figures(
    where: str, several: Sequence[Mapping[str, Estimate]], judged: set[str], artifacts: Sequence[Artifact]
) -> Figures:
    """Measures that two runs have or more, and by which these are not equal in the digits that are shown; of one
    artifact under several names all."""
    rows = {name: [one.get(name) for one in several] for name in dict.fromkeys(key for one in several for key in one)}
    shared = {name: row for name, row in rows.items() if sum(map(bool, row)) > 1}
    differ = {n: row for n, row in shared.items() if not equal([(number(e.value), interval(e)) for e in row if e])}
    if len({artifact.digest for artifact in artifacts}) == 1:
        differ = shared
    again = {i for i, artifact in enumerate(artifacts) if artifact in artifacts[:i]}  # by another name
    once = {name: [None if i in again else e for i, e in enumerate(row)] for name, row in differ.items()}
    best = {name: place for name, row in once.items() if (place := surely_best(name, row, judged)) is not None}
    return Figures(where, differ, best, len(shared) - len(differ))


def surely_best(measure: str, estimates: Sequence[Estimate | None], judged: set[str]) -> int | None:
    """The place of the estimate whose interval lies above those of all others; None where there is none, one has no
    interval, or more is not known to be better."""
    last = measure.rsplit("/", 1)[-1]
    if last not in judged and not last.startswith("win_rate") and not last.endswith(BETTER_HIGHER):
        return None
    known = {place: e.interval for place, e in enumerate(estimates) if e}
    intervals = {place: interval for place, interval in known.items() if interval}
    if len(intervals) < 2 or len(intervals) < len(known):
        return None
    first = max(intervals, key=lambda place: intervals[place])
    others = [interval for place, interval in intervals.items() if place != first]
    return first if all(high < intervals[first][0] for _, high in others) else None


def judged_by(config: Mapping[str, object]) -> set[str]:
    """What judges measure in a run of these settings, a model that is asked among them."""
    functions = config.get("judges")
    names = {str(name) for name in functions} if isinstance(functions, dict) else set()
    return names | ({"judge_prompt"} if config.get("judge_prompt") else set())


def _judged(artifacts: Sequence[Artifact]) -> set[str]:
    """What judges measured in these artifacts."""
    return {judge for artifact in artifacts for judge in judged_by(artifact.config)}


def _reports(store: Store, artifacts: Sequence[Artifact]) -> list[Figures]:
    """What named reports measured of two or more of the artifacts."""
    found = []
    for name, report, labels in reports(store):
        several = [_measured(report, f"{labels[a.digest]}/") if a.digest in labels else {} for a in artifacts]
        if sum(map(bool, several)) > 1:
            found.append(_figures(f"by {name}", several, _judged([report]), artifacts))
    return found


def _history(store: Store, artifact: Artifact) -> dict[str, Points]:
    """An artifact's curves, in order of steps. Raises: AlignError where its file holds something else: it may come from
    elsewhere."""
    try:
        found = read_curves(store, artifact)
        return {name: sorted((float(x), float(y)) for x, y in points) for name, points in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AlignError(
            f"{artifact.short}: history.jsonl is not what a stage writes ({type(error).__name__})."
        ) from error


def _no_curve(several: Sequence[Mapping[str, Points]]) -> list[str]:
    """That none is drawn, where there are some."""
    return ["No curve is drawn: they share none."] if any(several) and not _curves(several) else []


def _curves(several: Sequence[Mapping[str, Points]]) -> dict[str, dict[int, Points]]:
    names = by_importance({name for one in several for name in one})
    found = {name: {place: one[name] for place, one in enumerate(several) if name in one} for name in names}
    return {name: curves for name, curves in found.items() if len(curves) > 1}
