"""What a report says about a pipeline, as plain data: which stage is better, by how much, at what price. No torch, no
store.

`metrics` are an evaluation's own, flat: `ppo/polite`, `ppo/polite_ci95` (a pair), `ppo/win_rate_vs_sft` … A
baseline (demonstrations, random answers, the best possible) is one more name with the same measures. `html.py` and
`table.py` draw what is here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.store import CostRecord

LABELS = {"kl": "KL", "length": "length in tokens", "eos_rate": "ends with EOS", "loss": "held-out loss"}
"""Names people read for measures whose key is short or technical; every other key is shown with spaces for its
underscores."""
BASE = "base"
"""The row of the model before all training."""
NAMED = 3
"""Rows that a sentence names; the others are counted."""
SHARES = ("accuracy", "accuracies", "rate", "agreement", "fraction")
"""Measures in [0, 1], which reports show in %: keys that end in one of these, win rates, and what judges measure."""


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """One stage's completion of a sampled prompt, and the judge's score of it where there is one."""

    text: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out prompt, as it is to be read, and what each stage answered (by stage name)."""

    prompt: str
    answers: Mapping[str, ShownAnswer]


@dataclass(frozen=True, slots=True)
class Watched:
    """A prompt that was answered again and again during training: (when, what was said), in that order."""

    prompt: str
    answers: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Reinforced:
    """What a stage shows beside its curves; rewards in reinforcement learning alone."""

    rewards: Mapping[str, Sequence[tuple[float, float]]]
    """Reward -> (sqrt(KL), its mean) in the order of rollouts: the trained one, then those that only watched."""
    warnings: Sequence[str] = ()
    """The guard's."""
    watched: Sequence[Watched] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a stage as it held, and the default that it differs from; None where it does not."""

    name: str
    value: str
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All a report shows. Everything but the first three may be empty and is then left out of the page."""

    title: str
    stages: Sequence[str]
    """Names of the compared models in pipeline order, for example base, sft, dpo, ppo."""
    metrics: Mapping[str, Any]
    """`<name>/<measure>` and `<name>/<measure>_ci95`; names are the stages and the baselines."""
    baselines: Sequence[str] = ()
    """Names in `metrics` that are no models: demonstrations, random_answers, best_possible."""
    reference: str = "sft"
    """The stage that the others are compared with (`win_rate_vs_<reference>`)."""
    headline: str = "score"
    """The measure that says which stage is better."""
    lower_is_better: bool = False
    """Of the headline, as with a loss."""
    judged: Sequence[str] = ()
    """Measures that judges give; higher is better."""
    said: Mapping[str, str] = field(default_factory=dict)
    """Measure -> what its judge says of itself."""
    tied: Collection[str] = ()
    """Stages whose answers all score by the headline as the reference's do."""
    prompts: int = 0
    """How many were answered; 0 where none were, or it is not known."""
    note: str = ""
    """How it was measured: prompts, sampling, what the interval is."""
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]] = field(default_factory=dict)
    """Stage -> metric -> (step, value) in order of steps."""
    reinforced: Mapping[str, Reinforced] = field(default_factory=dict)
    """By stage, for those of reinforcement learning."""
    settings: Mapping[str, Sequence[Setting]] = field(default_factory=dict)
    """Stage -> its settings."""
    samples: Sequence[Sample] = ()
    costs: Mapping[str, CostRecord] = field(default_factory=dict)
    """Stage -> `seconds`, `tokens_per_second`, `peak_memory_bytes` (each may be missing)."""
    lineage: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value and, where known, the two ends of its 95 % interval."""

    value: float
    interval: tuple[float, float] | None = None


def estimate(report: Report, name: str, measure: str) -> Estimate | None:
    """`<name>/<measure>` with its interval; None where it was not measured or is not a finite number."""
    return as_estimate(report.metrics, f"{name}/{measure}")


def as_estimate(metrics: Mapping[str, Any], name: str) -> Estimate | None:
    """A figure with its interval, `<name>_ci95`; None where it was not measured or is not a finite number."""
    value = metrics.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    interval = metrics.get(f"{name}_ci95")
    return Estimate(value, (interval[0], interval[1]) if isinstance(interval, list | tuple) else None)


def win_rate(report: Report) -> str:
    """The measure that compares every stage with the report's reference."""
    return f"win_rate_vs_{report.reference}"


def rows(report: Report) -> list[str]:
    """Stages and baselines in the order of a reader's interest: stages first, as given."""
    return [*report.stages, *report.baselines]


def measures(report: Report) -> list[str]:
    """The measures that some stage or baseline has: the headline, the win rate, then the others as `metrics` lists
    them."""
    found = [
        key.removeprefix(f"{name}/") for key in report.metrics for name in rows(report) if key.startswith(f"{name}/")
    ]
    return [
        m
        for m in dict.fromkeys([report.headline, win_rate(report), *found])
        if any(estimate(report, name, m) for name in rows(report))
    ]


def is_main(report: Report, measure: str) -> bool:
    """Whether a measure is one of the two that are drawn: the headline and the win rate over the reference."""
    return measure in (report.headline, win_rate(report))


def label(name: str) -> str:
    """A measure as people read it. Names of rows stand as they are, so that they can be copied."""
    _, vs, row = name.partition("win_rate_vs_")
    return f"win rate vs {row}" if vs else LABELS.get(name, name.replace("_", " "))


def is_share(report: Report, measure: str) -> bool:
    """Whether a measure is shown in %: it may be a share, and no value and no end of an interval is outside [0, 1]."""
    found = (e for name in rows(report) if (e := estimate(report, name, measure)))
    values = [value for e in found for value in (e.value, *(e.interval or ()))]
    return may_be_share(measure, report.judged) and all(0 <= value <= 1 for value in values)


def may_be_share(measure: str, judged: Collection[str]) -> bool:
    """Whether a measure is a share if its values are, by its name or because a judge gave it."""
    return measure.startswith("win_rate") or measure.endswith(SHARES) or measure in judged


def number(value: float, share: bool = False) -> str:
    """A value with the digits that matter: one decimal of shares in %, three significant figures else."""
    if share:
        return f"{100 * value:.{int(value != 1)}f}%"
    if not math.isfinite(value) or 0 < abs(value) < 1e-6:  # of which six decimals would show none but zeros
        return f"{value:.3g}"
    decimals = 0 if value == 0 else max(0, min(6, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{decimals}f}"


def interval(estimate: Estimate, share: bool = False) -> str:
    """The interval as `66.4 to 75.5`, which stands beside the value and its %; empty where there is none."""
    return " to ".join(number(end, share).rstrip("%") for end in estimate.interval) if estimate.interval else ""


def duration(seconds: float) -> str:
    """`8.2 s`, `1 min 32 s`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: float) -> str:
    """Bytes as MiB below one GiB and GiB above."""
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.2f} GiB"


def leaders(report: Report) -> list[str]:
    """The stage that is best by the headline measure, then those that it is not told apart from: intervals overlap. The
    base is none of these where another's value is better."""
    found = {name: e for name in report.stages if (e := estimate(report, name, report.headline))}
    ordered = sorted(found, key=lambda name: found[name].value, reverse=not report.lower_is_better)
    near = [name for name in ordered if equal(found[name], found[ordered[0]])]
    return [name for name in near if name != BASE or found[name].value == found[near[0]].value]


def equal(one: Estimate, other: Estimate) -> bool:
    """Whether two values cannot be told apart: their intervals overlap, or they are the same."""
    if one.interval and other.interval:
        return one.interval[0] <= other.interval[1] and other.interval[0] <= one.interval[1]
    return one.value == other.value


def verdict(report: Report) -> str:
    return " ".join(sentences(report))


def sentences(report: Report) -> list[str]:
    """A verdict: the best stage by the headline measure and its equals, how often they win against the reference,
    whether that is surely more than half, and which other judge finds them worse. Every value with its interval. None
    where the stages have no headline measure."""
    if not (first := leaders(report)):
        return []
    rivals = [name for name in first if name != report.reference]
    best = _best(report, first)
    if report.prompts == 1 and report.headline in report.judged:
        best = f"On one prompt, which decides nothing, {best[0].lower()}{best[1:]}"
    return [*filter(None, [best, _wins(report, rivals), *_prices(report, rivals[:NAMED])])]


def _best(report: Report, first: Sequence[str]) -> str:
    what, reference = report.headline, report.reference
    found = {name: e for name in report.stages if (e := estimate(report, name, what))}
    figures = [f"{name} {_figure(report, name, what)}" for name in first[:NAMED]]
    by = f"by {label(what)}"
    if len(first) > 1 and len({e.value for e in found.values()}) == 1:
        return f"All are alike {by}: {_some(figures, len(first), ', ')}."
    near = {name for name in (reference, BASE) if name in found and equal(found[name], found[first[0]])}
    beside = {reference, *near, *(found.keys() if not any(e.interval for e in found.values()) else ())}
    others = [n for n in dict.fromkeys((reference, BASE)) if n in beside and n not in first[:NAMED]]
    has = {n: figure for n in others if (figure := _figure(report, n, what))}
    listed = _some(figures, len({*first} - has.keys()), ", ")  # each of these has a place of its own
    how = "not told apart as their intervals overlap" if any(found[name].interval for name in first) else "and equal"
    text = f"Best {by}, {how}: {listed}" if len(first) > 1 else f"Best {by}: {listed}"
    text += "".join(f"; {n} has {figure}{', not told apart from the best' * (n in near)}" for n, figure in has.items())
    return f"{text}; no other stage is better." if [*first] == [reference] and not has else f"{text}."


def _some(texts: Sequence[str], count: int, last: str = " and ") -> str:
    """The first of `count` texts, and how many are left."""
    if count > NAMED:
        return f"{', '.join(texts[:NAMED])} and {count - NAMED} more"
    return last.join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def _wins(report: Report, names: Sequence[str]) -> str:
    """How often the first win against the reference, and how many of all not surely more often than not."""
    measure = win_rate(report)
    found = {name: e for name in names if (e := estimate(report, name, measure))}
    if not found:
        return ""
    ties = [name for name, e in found.items() if name in report.tied and e.value == 0.5]
    if len(ties) == len(found):
        return f"All comparisons with {report.reference} are ties."
    won = {name: "only ties" if name in ties else f"wins {_figure(report, name, measure)}" for name in [*found][:NAMED]}
    text = f"Of comparisons with {report.reference} {', '.join(f'{name} {how}' for name, how in won.items())}"
    unsure = [n for n, e in found.items() if n not in ties and (not e.interval or e.interval[0] <= 0.5)]
    return f"{text}; {_some(unsure, len(unsure))} not surely more than half." if unsure else f"{text}."


def _prices(report: Report, names: Sequence[str]) -> list[str]:
    """What other judges find surely worse than the reference's: a sentence for each judge."""
    text = []
    for measure in report.judged:
        before, what = estimate(report, report.reference, measure), label(measure)
        found = {name: e for name in names if (e := estimate(report, name, measure))}
        worse = [n for n, e in found.items() if before and e.value < before.value and not equal(e, before)]
        if worse and measure != report.headline:
            listed = _some([f"{name} {_figure(report, name, measure)}" for name in worse], len(worse))
            has = _figure(report, report.reference, measure)
            text.append(f"But {what} is lower in {listed}; {report.reference} has {has}.")
    return text


def _figure(report: Report, name: str, measure: str) -> str:
    """A value with its interval, `70.3% (95%: 66.3 to 74.3)`; empty where it was not measured."""
    found, share = estimate(report, name, measure), is_share(report, measure)
    ends = f" (95%: {interval(found, share)})" if found and found.interval else ""
    return f"{number(found.value, share)}{ends}" if found else ""
