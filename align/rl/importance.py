"""Importance weights for a sampler whose distribution is not quite the trainer's: Yao et al. 2025, "Your Efficient RL
Framework Secretly Brings You Off-Policy RL Training" (token by token, truncated), and Liu et al. 2025 (whole answers,
or left out), by the four modes of TRL's `vllm_importance_sampling_correction`.

    w = p_trainer(y) / p_sampler(y), of a token or of a whole answer, and w x advantage in the loss:
    truncate: min(w, most), at least `least`;  mask: w where least <= w <= most, else 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from align.rl.advantages import Advantages, PerToken
from align.sampling.rollout import Answer

if TYPE_CHECKING:
    from align.rl.settings import RLConfig


def ratios(logprobs: PerToken, drawn: PerToken, of_answers: bool) -> list[np.ndarray]:
    """Per sample (its tokens,): how likely the trainer finds each token, or the whole answer, against the sampler. A
    token that the sampler noted no log-prob of (nan) counts as equally likely."""
    gaps = [np.nan_to_num(mine - theirs, nan=0.0) for mine, theirs in zip(logprobs, drawn, strict=True)]
    return [np.exp(np.full(len(gap), gap.sum()) if of_answers else gap) for gap in gaps]


def limited(weights: np.ndarray, mask: bool, least: float, most: float) -> np.ndarray:
    """Weights outside [`least`, `most`] brought to its edge, or, with `mask`, to 0."""
    if mask:
        return np.where((weights < least) | (weights > most), 0.0, weights)
    return weights.clip(least, most)


def corrected(found: Advantages, logprobs: PerToken, answers: Sequence[Answer], config: RLConfig) -> Advantages:
    """The advantages of a rollout, weighted where `importance` asks for it; with the mean weight and the share of
    weights that were limited."""
    if config.importance is None:
        return found
    level, what = config.importance.split("_")
    raw = ratios(logprobs, [np.array(a.logprobs) for a in answers], level == "sequence")
    weights = [limited(w, what == "mask", config.importance_min, config.importance_max) for w in raw]
    columns = [a * w for a, w in zip(found.columns["advantages"], weights, strict=True)]
    before, after = np.concatenate(raw), np.concatenate(weights)
    told = {"importance/mean": float(after.mean()), "importance/limited": float((before != after).mean())}
    return replace(found, columns={**found.columns, "advantages": columns}, metrics={**found.metrics, **told})
