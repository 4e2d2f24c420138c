"""A rollout, and how much better than expected a token or an answer in it was: pure functions over its samples.

S samples; per token means one array (its tokens,) for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from align.rl.kl import ESTIMATORS, k1

if TYPE_CHECKING:
    from align.rl.settings import RLConfig
    from align.sampling.rollout import Answer

PerToken = Sequence[np.ndarray]
EPSILON = 1e-4
"""Added to the standard deviation of a group's scores (as TRL has it)."""
NO_VARIANCE = 1e-6
"""Scores of a group that lie closer together than this are equal: what is left is rounding."""
OTHERWISE = {"old_values": "old_values", "returns": "old_values", "ref_logprobs": "ref_logprobs"}
"""What stands in the columns of `Advantages` for a sample without a score, but for 0."""


@dataclass(frozen=True)
class Rollout:
    """S samples, one after the other; `group_size` neighbours answer one prompt."""

    scores: np.ndarray
    """(S,): what the rewards gave, weighted, added up and shaped; nan where none gave a score."""
    columns: Mapping[str, Sequence[np.ndarray]]
    """Per sample (its tokens,): old_logprobs, ref_logprobs, entropy, and what else the stage measures."""
    group_size: int
    kl_coef: float
    """What a nat of KL costs in this rollout."""

    @property
    def kl(self) -> list[np.ndarray]:
        """Per sample (its tokens,): the k1 estimate of KL(policy || reference)."""
        return [k1(p, r) for p, r in zip(self.columns["old_logprobs"], self.columns["ref_logprobs"], strict=True)]

    def price_of_kl(self, estimator: str) -> list[np.ndarray]:
        """Per sample (its tokens,): kl_coef x the estimate of KL that `rl.kl.ESTIMATORS` has under this name."""
        estimate = ESTIMATORS[estimator]
        pairs = zip(self.columns["old_logprobs"], self.columns["ref_logprobs"], strict=True)
        return [self.kl_coef * estimate(p, r) for p, r in pairs]

    @property
    def without_variance(self) -> np.ndarray:
        """(G,): groups whose samples all have the same score, or none, which says nothing about which is better."""
        return without_variance(self.scores, self.group_size)


@dataclass(frozen=True)
class Advantages:
    """What a stage makes of a rollout."""

    columns: Mapping[str, Sequence[np.ndarray]]
    """Per sample (its tokens,), for the loss: advantages, and whatever else it reads beside old_logprobs."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    dropped: np.ndarray | None = None
    """(G,): groups that no loss is taken over."""


def of_scored(rollout: Rollout, advantages: Callable[[Rollout], Advantages]) -> Advantages:
    """Advantages of the samples that have a score, as if no other had been drawn. No loss is taken over groups in which
    none has one; elsewhere a sample without a score is neither better nor worse, 0, and its values are to stay."""
    known = ~np.isnan(rollout.scores)
    if known.all():
        return advantages(rollout)
    some = {name: [v for v, k in zip(column, known, strict=True) if k] for name, column in rollout.columns.items()}
    found = advantages(replace(rollout, scores=rollout.scores[known], columns=some, group_size=1))
    columns = {}
    for name, column in found.columns.items():
        of_those = iter(column)
        others = rollout.columns[OTHERWISE[name]] if name in OTHERWISE else spread(np.zeros(len(known)), rollout.kl)
        columns[name] = [next(of_those) if k else other for k, other in zip(known, others, strict=True)]
    return replace(found, columns=columns, dropped=~known.reshape(-1, rollout.group_size).any(1))


def without_variance(scores: np.ndarray, group_size: int) -> np.ndarray:
    """(G,): groups of `scores (S,)` that all have the same one, or none."""
    groups = scores.reshape(-1, group_size)
    return ~(np.fmax.reduce(groups, 1) - np.fmin.reduce(groups, 1) >= NO_VARIANCE)


def rewards_per_token(scores: np.ndarray, price_of_kl: PerToken) -> list[np.ndarray]:
    """The price of KL off every token, and the score where the last token is chosen (Ziegler et al. 2019, arXiv
    1909.08593, eq. 2; read at the end-of-turn token: detail 12 of arXiv 2403.17031)."""
    out = []
    for price, score in zip(price_of_kl, scores, strict=True):
        reward = -price
        reward[-1] += score
        out.append(reward)
    return out


def gae(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """Generalised advantage estimates of one sample; the episode ends after its last token (arXiv 1506.02438, eq. 16).
    All (tokens,)."""
    out = np.zeros_like(rewards)
    running, following = 0.0, 0.0
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + gamma * following - values[t]
        running = delta + gamma * lam * running
        out[t], following = running, values[t]
    return out


def rewards_to_go(rewards: PerToken, gamma: float = 1.0) -> list[np.ndarray]:
    """Per token: the sum of the rewards from it on, discounted: what was in fact got (Monte Carlo returns)."""
    return [gae(r, np.zeros_like(r), gamma, 1.0) for r in rewards]


def whitened_about_mean(rewards: PerToken) -> list[np.ndarray]:
    """Standard deviation 1 over all tokens, mean kept (whitening of rewards, detail 24 of arXiv 2403.17031): `whiten`
    with `shift_mean=False` of lm-human-preferences, (r - mean) / sqrt(variance + 1e-8) + mean."""
    flat = np.concatenate(rewards)
    mean, deviation = flat.mean(), np.sqrt(flat.var() + 1e-8)
    return [(r - mean) / deviation + mean for r in rewards]


def whitened(advantages: PerToken) -> list[np.ndarray]:
    """Mean 0 and standard deviation 1 over all tokens of the rollout (whitening of advantages: detail 25 of arXiv
    2403.17031)."""
    flat = np.concatenate(advantages)
    mean, deviation = flat.mean(), flat.std() + 1e-8
    return [(a - mean) / deviation for a in advantages]


def explained_variance(values: PerToken, returns: PerToken) -> float:
    """Share of the returns' variance that the values foresaw: 1 is all of it, 0 what a constant does, below 0 is worse
    than a constant."""
    flat_returns, flat_values = np.concatenate(returns), np.concatenate(values)
    return float(1 - (flat_returns - flat_values).var() / max(flat_returns.var(), 1e-8))


def group_relative(scores: np.ndarray, group_size: int, scale: bool) -> np.ndarray:
    """(S,): score less the mean of its group; `scale` divides by the group's standard deviation (sample deviation, as
    TRL has it).

    A sample without a score is no part of its group, and neither better nor worse: 0 (as TRL has it).
    """
    groups = scores.reshape(-1, group_size)
    known = ~np.isnan(groups)
    count = known.sum(1, keepdims=True)
    gaps = np.where(known, groups - np.nan_to_num(groups).sum(1, keepdims=True) / np.maximum(count, 1), 0.0)
    deviation = np.sqrt(np.square(gaps).sum(1, keepdims=True) / np.maximum(count - 1, 1))
    return (gaps / (deviation + EPSILON) if scale else gaps).reshape(-1)


def leave_one_out(returns: np.ndarray, group_size: int) -> np.ndarray:
    """(S,): return less the mean of the others in its group that have a score; 0 without a score, or without others (as
    TRL has it)."""
    groups = returns.reshape(-1, group_size)
    others = (~np.isnan(groups)).sum(1, keepdims=True) - 1
    baselines = (np.nan_to_num(groups).sum(1, keepdims=True) - groups) / np.maximum(others, 1)
    return np.where((others > 0) & ~np.isnan(groups), groups - baselines, 0.0).reshape(-1)


def above_group(rollout: Rollout) -> Rollout:
    """The same, its scores less the mean of their group; a sample without a score has none."""
    gains = group_relative(rollout.scores, rollout.group_size, scale=False)
    return replace(rollout, scores=np.where(np.isnan(rollout.scores), np.nan, gains))


def best_and_worst(scores: np.ndarray, group_size: int) -> np.ndarray:
    """(S,): 1 at each group's best sample, -1 at its worst, of equal ones the first, 0 elsewhere, and in groups whose
    samples all have one score. A sample without a score is neither."""
    groups = scores.reshape(-1, group_size)
    best = np.where(np.isnan(groups), -np.inf, groups).argmax(1)
    worst = np.where(np.isnan(groups), np.inf, groups).argmin(1)
    sides, each = np.zeros(groups.shape), np.arange(len(groups))
    sides[each, best] = 1.0
    sides[each, worst] -= 1.0
    sides[without_variance(scores, group_size)] = 0.0
    return sides.reshape(-1)


def per_sample(values: PerToken) -> np.ndarray:
    """(S,): the sum over each sample's tokens."""
    return np.array([float(v.sum()) for v in values])


def spread(values: np.ndarray, like: PerToken) -> list[np.ndarray]:
    """A value per sample, at each of its tokens."""
    return [np.full(len(tokens), value) for value, tokens in zip(values, like, strict=True)]


def at_open_tokens(values: PerToken, entropies: PerToken, share: float) -> list[np.ndarray]:
    """0 but at the `share` of the rollout's tokens before which the policy's entropy is highest: Wang et al. 2025
    (arXiv 2506.01939), by the quantile that TRL takes."""
    least = np.quantile(np.concatenate(entropies), 1 - share)
    return [np.where(e >= least, v, 0.0) for v, e in zip(values, entropies, strict=True)]


# ---- a sampler that is not quite the trainer -------------------------------------------------------------------------


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
    """The advantages of a rollout, weighted where `importance` asks for it, w = p_trainer / p_sampler of a token or of
    a whole answer; with the mean weight and the share of weights that were limited.

    Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (of tokens, truncated), by
    the four modes of TRL's `vllm_importance_sampling_correction`, in which the price of KL stays as it is.
    """
    if config.importance is None:
        return found
    level, what = config.importance.split("_")
    raw = ratios(logprobs, [np.array(a.logprobs) for a in answers], level == "sequence")
    weights = [limited(w, what == "mask", config.importance_min, config.importance_max) for w in raw]
    columns = [a * w for a, w in zip(found.columns["advantages"], weights, strict=True)]
    before, after = np.concatenate(raw), np.concatenate(weights)
    told = {"importance/mean": float(after.mean()), "importance/limited": float((before != after).mean())}
    return replace(found, columns={**found.columns, "advantages": columns}, metrics={**found.metrics, **told})
