"""How much better than expected a token or an answer was: pure functions over the samples of one rollout.

S samples; per token means one array (its tokens,) for each sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PerToken = Sequence[np.ndarray]
EPSILON = 1e-4
"""Added to the standard deviation of a group's scores (as TRL has it)."""


def rewards_per_token(scores: np.ndarray, kl: PerToken, kl_coef: float) -> list[np.ndarray]:
    """Less `kl_coef` x KL at every token (N+ details, 3.6); the score is credited where the last token is chosen."""
    out = []
    for penalty, score in zip(kl, scores, strict=True):
        reward = -kl_coef * penalty
        reward[-1] += score
        out.append(reward)
    return out


def gae(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """Generalised advantage estimates of one sample; the episode ends after its last token (arXiv 1506.02438, eq. 16). All (tokens,)."""
    out = np.zeros_like(rewards)
    running, following = 0.0, 0.0
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + gamma * following - values[t]
        running = delta + gamma * lam * running
        out[t], following = running, values[t]
    return out


def rewards_to_go(rewards: PerToken) -> list[np.ndarray]:
    """Per token: the sum of the rewards from it on."""
    return [r[::-1].cumsum()[::-1] for r in rewards]


def scaled(rewards: PerToken) -> list[np.ndarray]:
    """Divided by their standard deviation over all tokens, mean kept."""
    deviation = np.concatenate(rewards).std() + 1e-8
    return [r / deviation for r in rewards]


def whitened(advantages: PerToken) -> list[np.ndarray]:
    """Mean 0 and standard deviation 1 over all tokens of the rollout."""
    flat = np.concatenate(advantages)
    mean, deviation = flat.mean(), flat.std() + 1e-8
    return [(a - mean) / deviation for a in advantages]


def explained_variance(values: PerToken, returns: PerToken) -> float:
    """Share of the returns' variance that the values foresaw: 1 is all of it, 0 what a constant does, below 0 is worse than a constant."""
    flat_returns, flat_values = np.concatenate(returns), np.concatenate(values)
    return float(1 - (flat_returns - flat_values).var() / max(flat_returns.var(), 1e-8))


def group_relative(scores: np.ndarray, group_size: int, scale: bool) -> np.ndarray:
    """(S,): score less the mean of its group; `scale` divides by the group's standard deviation (sample deviation, as TRL has it)."""
    groups = scores.reshape(-1, group_size)
    gaps = groups - groups.mean(1, keepdims=True)
    return (gaps / (groups.std(1, ddof=1, keepdims=True) + EPSILON) if scale else gaps).reshape(-1)


def leave_one_out(returns: np.ndarray, group_size: int) -> np.ndarray:
    """(S,): return less the mean of the others in its group."""
    groups = returns.reshape(-1, group_size)
    others = (groups.sum(1, keepdims=True) - groups) / (group_size - 1)
    return (groups - others).reshape(-1)


def per_sample(values: PerToken) -> np.ndarray:
    """(S,): the sum over each sample's tokens."""
    return np.array([float(v.sum()) for v in values])


def spread(values: np.ndarray, like: PerToken) -> list[np.ndarray]:
    """A value per sample, at each of its tokens."""
    return [np.full(len(tokens), value) for value, tokens in zip(values, like, strict=True)]
