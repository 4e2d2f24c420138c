"""What the guard of reinforcement learning warns of: its thresholds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from align.recipe import Runtime, Settings
from align.recipe.settings import Count

Name = Literal[
    "kl",
    "negative_kl",
    "eos_rate",
    "length",
    "entropy",
    "reward_hacking",
    "no_variance",
    "ratio",
    "explained_variance",
    "sampler_gap",
]


class RolloutLimits(Settings):
    """The guard of reinforcement learning"""

    kl: PositiveFloat = 25.0
    """Warn above this mean KL from the reference, in nats per answer; long answers may need more."""
    negative_kl: PositiveFloat = 1.0
    """Warn where the estimate of KL is further below 0 than this, in nats per answer: a KL is not negative."""
    eos_rate: float = Field(default=0.7, ge=0.0, le=1.0)
    """Warn where a smaller share of answers ends by itself."""
    length: PositiveFloat = 2.0
    """Warn where answers are longer than this many times those of the first rollout."""
    entropy: float = Field(default=0.1, ge=0.0, le=1.0)
    """Warn where entropy per token is below this share of the first rollout's."""
    reward_hacking: PositiveFloat = 0.25
    """Warn where a reward of weight 0 has fallen by so many of its standard deviations while the trained reward
    rose."""
    no_variance: float = Field(default=0.9, gt=0.0, le=1.0)
    """Warn where more than this share of groups have equal scores, from which nothing is learnt."""
    ratio: PositiveFloat = 0.1
    """Warn where in the first step of a rollout the policy ratio is typically this far from 1, where it should be 1."""
    explained_variance: float = Field(default=0.0, ge=-1.0, le=1.0)
    """Warn where the values explain less of the returns' variance, `window` rollouts on end; the first `window` are
    left out."""
    sampler_gap: PositiveFloat = 1.0
    """Warn where sampler and trainer differ by more than this on a token's log-prob, in nats."""
    window: Count = 5
    """Rollouts over which reward_hacking takes means, and explained_variance waits."""
    stop: Annotated[list[Name], Runtime] = Field(default_factory=list)
    """Signs that end the run, by the names above; the last checkpoint is kept. Without influence on a result."""
