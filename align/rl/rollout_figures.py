"""What is logged of every rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from align.rl.advantages import Rollout
from align.sampling.rollout import Answer


def figures(
    rollout: Rollout, rewards: np.ndarray, by_name: Mapping[str, np.ndarray], answers: Sequence[Answer]
) -> dict[str, float]:
    """Figures of S samples.

    Args:
        rewards: (S,), the weighted sum as it is before it is shaped.
        by_name: each reward's (S,), logged where there are several. Means are over the samples that have a score,
            `unscored` is the share of those that have none.
        answers: as they were drawn.
    """
    kl = rollout.kl
    gaps = sampler_gap(answers, rollout.columns["old_logprobs"])
    found = {
        "reward/mean": float(known(rewards).mean()),
        "score/mean": float(known(rollout.scores).mean()),
        "kl": float(np.mean([k.sum() for k in kl])),
        "entropy": float(np.concatenate(rollout.columns["entropy"]).mean()),
        "eos_rate": float(np.mean([a.ended for a in answers])),
        "length": float(np.mean([len(k) for k in kl])),
        "sampler_gap/mean": float(gaps.mean()),
        "sampler_gap/max": float(gaps.max()),
    }
    if unscored := int(np.isnan(rewards).sum()):
        found["unscored"] = unscored / len(rewards)
    if len(by_name) > 1:
        for name, its in by_name.items():
            scores = known(its)
            if len(scores) < len(its):
                found[f"reward/{name}/unscored"] = 1 - len(scores) / len(its)
            if len(scores):
                found |= {f"reward/{name}": float(scores.mean()), f"reward/{name}/std": float(scores.std())}
    if rollout.group_size > 1:
        found["groups_without_variance"] = float(rollout.without_variance.mean())
    return found


def known(scores: np.ndarray) -> np.ndarray:
    """Those that are scores: nan stands for none."""
    return scores[~np.isnan(scores)]


def sampler_gap(answers: Sequence[Answer], logprobs: Sequence[np.ndarray]) -> np.ndarray:
    """(all tokens,): how far the log-prob that each was drawn with is from the trainer's own, in nats: rounding, where
    all is well."""
    return np.abs(np.concatenate([a.logprobs for a in answers]) - np.concatenate(logprobs))
