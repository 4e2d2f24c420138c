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
SHARES = ("accuracy", "rate", "agreement")
"""Measures in [0, 1] that are shown of 100: keys that end in one of these, win rates, and what judges measure."""


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
    """The measure that says which stage is better; higher is better."""
    judged: Sequence[str] = ()
    """Measures that judges give; higher is better."""
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
    recipe: str = ""


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
    """A measure or a row as people read it."""
    return LABELS.get(name, name.replace("_", " "))


def is_share(report: Report, measure: str) -> bool:
    """Whether a measure is shown of 100: it may be a share, and no value is outside [0, 1]."""
    found = [estimate(report, name, measure) for name in rows(report)]
    return may_be_share(measure, report.judged) and all(0 <= e.value <= 1 for e in found if e)


def may_be_share(measure: str, judged: Collection[str]) -> bool:
    """Whether a measure is a share if its values are, by its name or because a judge gave it."""
    return measure.startswith("win_rate") or measure.endswith(SHARES) or measure in judged


def number(value: float, share: bool = False) -> str:
    """A value with the digits that matter: one decimal of 100 for shares, three significant figures else."""
    if share:
        return f"{100 * value:.1f}"
    if not math.isfinite(value):
        return str(value)
    decimals = 0 if value == 0 else max(0, min(6, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{decimals}f}"


def interval(estimate: Estimate, share: bool = False) -> str:
    """The interval as `66.4 to 75.5`, empty where there is none."""
    return " to ".join(number(end, share) for end in estimate.interval) if estimate.interval else ""


def duration(seconds: float) -> str:
    """`8.2 s`, `1 min 32 s`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: float) -> str:
    """Bytes as MiB below one GiB and GiB above."""
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.2f} GiB"


def best(report: Report) -> str | None:
    """The stage with the highest headline measure, the earlier one of equals."""
    scores = {name: e.value for name in report.stages if (e := estimate(report, name, report.headline))}
    return max(scores, key=lambda name: scores[name]) if scores else None


def verdict(report: Report) -> str:
    """One or two sentences: the best stage, whether it is surely better than the reference, and which other judge finds
    it worse.

    Surely better means that the win rate's interval lies above one half. Empty where the stages have no headline
    measure.
    """
    winner, what, reference = best(report), label(report.headline), report.reference
    after = estimate(report, winner, report.headline) if winner else None
    if not winner or not after:
        return ""
    share = is_share(report, report.headline)
    before, score = estimate(report, reference, report.headline), number(after.value, share)
    if winner == reference:
        return f"No stage is better than {reference}: its {what} of {score} is the highest."
    if not before:
        return f"{winner} has the highest {what}, {score}."
    against = f"{what} {score} against {number(before.value, share)}"
    wins = estimate(report, winner, win_rate(report))
    if not wins:
        return f"{winner} is ahead of {reference}: {against}."
    margin = f"wins {number(wins.value, True)}% of comparisons" + (
        f" (95%: {interval(wins, True)})" if wins.interval else ""
    )
    sure = wins.interval is not None and wins.interval[0] > 0.5
    text = f"{winner} {'beats' if sure else 'is not surely better than'} {reference}: it {margin}, {against}."
    for measure in report.judged:
        now, earlier = estimate(report, winner, measure), estimate(report, reference, measure)
        if measure != report.headline and now and earlier and now.value < earlier.value:
            of_100 = is_share(report, measure)
            text += f" But its {label(measure)} is lower: {number(now.value, of_100)}"
            text += f" against {number(earlier.value, of_100)}."
    return text
