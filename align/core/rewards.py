"""Rewards of sampled answers: reward models on the base, and Python judges; several combine as a weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from align.core.metrics import scores
from align.core.roles import Roles
from align.data.examples import Example
from align.data.records import Prompt
from align.errors import AlignError
from align.judge import Judge


@dataclass(frozen=True)
class Samples:
    """S samples to be scored: as groups of token ids, and per sample its prompt and its text."""

    groups: Sequence[Example]
    prompts: Sequence[Prompt]
    texts: Sequence[str]
    """Empty where no reward reads text."""


@dataclass(frozen=True)
class Reward:
    """Something that scores samples: (S,)."""

    name: str
    weight: float
    score: Callable[[Samples], np.ndarray]
    reads_text: bool = False


def by_model(name: str, weight: float, roles: Roles, role: str, budget: int) -> Reward:
    """The scores of a reward model, one of the roles; `budget` tokens at a time."""
    return Reward(name, weight, lambda samples: scores(roles, role, samples.groups, budget))


def by_judge(name: str, weight: float, judge: Judge) -> Reward:
    """The scores of a Python function."""
    return Reward(name, weight, lambda samples: np.array(judge(samples.prompts, samples.texts)), reads_text=True)


def total(rewards: Sequence[Reward], by_name: Mapping[str, np.ndarray]) -> np.ndarray:
    """(S,): the weighted sum. Raises: AlignError where a score is no number."""
    for name, values in by_name.items():
        if bad := int((~np.isfinite(values)).sum()):
            raise AlignError(f"reward {name} gave {bad} of {len(values)} answers a score that is not finite; every answer needs a number.")
    return sum((r.weight * by_name[r.name] for r in rewards[1:]), rewards[0].weight * by_name[rewards[0].name])
