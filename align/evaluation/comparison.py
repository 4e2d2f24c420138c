"""Models beside each other: what judges' scores of their answers to the same prompts say. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import numpy as np

from align.judges.asked import NAME
from align.judges.scores import none_at_all
from align.measures.intervals import mean_interval, share_interval


def own_seed(seed: int, name: str) -> int:
    """The seed of one model's draws, which depend on nothing else that is compared."""
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0])


def compare(
    scores: Mapping[str, Mapping[str, Any]], against: str, wins: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Mean of every measure with its interval; and by the first judge how often each beats `against`, ties half.

    A measure is a share where every score of every model is 0 or 1, so that all that stand beside each other have
    intervals of one kind, and where a model that is asked gives probabilities.

    Answers without a score (None) are left out and counted; of win rates, comparisons where either has none.

    Args:
        scores: by judge and model, (prompts, answers to each).
        wins: by model, (prompts,): how often its answers beat the other's, where the first judge compares them itself.
    Raises: AlignError where a judge gave no answer of a model a score.
    """
    metrics: dict[str, Any] = {}
    for i, (measure, by_name) in enumerate(scores.items()):
        tables = {name: np.array(values, dtype=float).reshape(len(values), -1) for name, values in by_name.items()}
        share = measure == NAME or is_share(tables.values())
        for name, values in tables.items():
            if missing := int(np.isnan(values).sum()):
                metrics[f"{name}/{measure}_unscored"] = missing
            if missing == values.size:
                raise none_at_all([measure], missing, f" of {name}")
            metrics |= mean_of(f"{name}/{measure}", values, share)
            if i > 0 or name == against:
                continue
            won = wins[name] if wins else win_rates(values, tables[against])
            if len(won):
                metrics[f"{name}/win_rate_vs_{against}"] = fmean(won)
                metrics[f"{name}/win_rate_vs_{against}_ci95"] = list(share_interval(won))
    return metrics


def is_share(tables: Iterable[np.ndarray]) -> bool:
    """Whether every score that there is is 0 or 1."""
    return all(bool(np.isin(values[~np.isnan(values)], (0, 1)).all()) for values in tables)


def mean_of(name: str, values: np.ndarray, share: bool) -> dict[str, Any]:
    """A mean over prompts of `values (P, n)` with its interval, of a `share` or any other; of a single prompt a share
    alone has one."""
    known = ~np.isnan(values)
    means = _means(np.where(known, values, 0.0), known)
    found: dict[str, Any] = {name: fmean(means)}
    if share or len(means) > 1:
        found[f"{name}_ci95"] = list((share_interval if share else mean_interval)(means))
    return found


def win_rates(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(P,): of each prompt how often its answers beat the other model's, each of `values (P, n)` against each of
    `others (P, m)`; ties count half. Prompts where nothing can be compared are left out."""
    gaps = (values[:, :, None] - others[:, None, :]).reshape(len(values), -1)
    known = ~np.isnan(gaps)
    return _means(np.where(known, 0.5 + np.sign(gaps) / 2, 0.0), known)


def _means(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(rows,): the mean of each row's values that are `known` (the others are 0); rows without one are left out."""
    some = known.any(1)
    return np.asarray(values[some].sum(1) / known[some].sum(1))
