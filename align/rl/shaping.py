"""What the rewards' sum becomes before advantages are worked out: normalised, clipped, and less what length and a
missing end cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from align.rl.settings import RLConfig


@dataclass
class Moments:
    """Mean and variance of all numbers so far (Chan, Golub and LeVeque 1979: two sets' moments give those of their
    union)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    @property
    def deviation(self) -> float:
        return math.sqrt(self.squares / max(self.count, 1))

    def add(self, values: np.ndarray) -> None:
        count = self.count + len(values)
        gap = float(values.mean()) - self.mean
        self.squares += float(np.square(values - values.mean()).sum()) + gap**2 * self.count * len(values) / count
        self.mean += gap * len(values) / count
        self.count = count

    def state_dict(self) -> dict[str, float]:
        return asdict(self)

    @staticmethod
    def of(state: Mapping[str, float]) -> Moments:
        """What `state_dict` gave."""
        return Moments(int(state["count"]), state["mean"], state["squares"])


def shaped(
    rewards: np.ndarray, lengths: np.ndarray, ended: np.ndarray, config: RLConfig, moments: Moments
) -> np.ndarray:
    """(S,): scores from rewards, in this order:

    normalised by mean and deviation, of this rollout or of all so far (reward scaling: detail 8 for continuous actions
    of "The 37 implementation details of PPO", where the mean stays), clipped (detail 9 there), less length_penalty for
    each token, less missing_eos_penalty where the answer did not end (the EOS trick, detail 23 of arXiv 2403.17031,
    where -1 takes the score's place), less up to 1 over the last overlong_buffer tokens (`overlong`).

    A sample without a score (nan) keeps none, and counts in no mean.

    Args:
        lengths: (S,), tokens of each answer.
        ended: (S,), booleans.
        moments: of all rollouts before; this one is added where running moments are asked for.
    """
    c = config
    scores = rewards
    if c.normalise_rewards is not None:
        if c.normalise_rewards == "rollout":
            moments = Moments()
        moments.add(rewards[~np.isnan(rewards)])
        scores = (rewards - moments.mean) / (moments.deviation + 1e-8)
    if c.reward_clip is not None:
        scores = scores.clip(-c.reward_clip, c.reward_clip)
    scores = scores - c.length_penalty * lengths - c.missing_eos_penalty * ~ended
    return scores - overlong(lengths, c.max_new_tokens, c.overlong_buffer) if c.overlong_buffer else scores


def overlong(lengths: np.ndarray, longest: int, buffer: int) -> np.ndarray:
    """(S,): 0 up to `longest` - `buffer` tokens, from there on linearly up to 1 at `longest`: DAPO's soft punishment,
    Yu et al. 2025 (arXiv 2503.14476) eq. 13."""
    return ((lengths - (longest - buffer)) / buffer).clip(0.0, 1.0)
