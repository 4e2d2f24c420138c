"""Models beside each other: what judges' scores of their answers to the same prompts say. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np

from align.core.intervals import mean_interval, share_interval


def own_seed(seed: int, name: str) -> int:
    """The seed of one model's draws, which depend on nothing else that is compared."""
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0])


def compare(scores: Mapping[str, Mapping[str, Any]], against: str) -> dict[str, Any]:
    """Mean of every measure with its interval; and by the first judge how often each beats `against`, ties half. `scores` are
    (prompts, answers to each), by judge and model."""
    metrics: dict[str, Any] = {}
    for i, (measure, by_name) in enumerate(scores.items()):
        for name, values in by_name.items():
            metrics |= mean_of(f"{name}/{measure}", values)
            if i == 0 and name != against:
                wins = win_rates(values, by_name[against])
                metrics[f"{name}/win_rate_vs_{against}"] = fmean(wins)
                metrics[f"{name}/win_rate_vs_{against}_ci95"] = list(share_interval(wins))
    return metrics


def mean_of(name: str, values: Any) -> dict[str, Any]:
    """A mean over prompts with its interval, that of a share where every value is 0 or 1; of a single prompt without one."""
    of_prompts = np.asarray(values, dtype=float).reshape(len(values), -1)
    share = np.isin(of_prompts, (0, 1)).all()
    means = of_prompts.mean(1)
    found: dict[str, Any] = {name: fmean(means)}
    if share or len(means) > 1:
        found[f"{name}_ci95"] = list((share_interval if share else mean_interval)(means))
    return found


def win_rates(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(P,): of each prompt how often its answers beat the other model's, each of `values (P, n)` against each of `others (P, m)`; ties
    count half."""
    mine, theirs = (np.asarray(v, dtype=float).reshape(len(v), -1) for v in (values, others))
    return np.asarray(0.5 + np.sign(mine[:, :, None] - theirs[:, None, :]).mean((1, 2)) / 2)
