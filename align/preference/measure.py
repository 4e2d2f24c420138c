"""Implicit rewards: what a policy that was trained on pairs holds of their answers, and how well that orders pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from align import measures
from align.data.examples import Example
from align.ground.json import Json

if TYPE_CHECKING:
    from align.models.roles import Roles

ImplicitReward = Callable[[float, int], float]
"""A completion's reward of its log-prob in nats, less the reference's where there is one, and its number of tokens."""


def implicit_rewards(roles: Roles, examples: Sequence[Example], budget: int, reward: ImplicitReward) -> list[float]:
    """The implicit reward of every sequence, in the order of the examples and within them."""
    policy = measures.passes.sequence_logprobs(roles, "policy", examples, budget)
    found = []
    for example, rows in zip(examples, policy, strict=True):
        sums = [row.sum() for row in rows]
        if "ref_logprobs" in example.columns:
            sums = [p - r.sum() for p, r in zip(sums, example.columns["ref_logprobs"], strict=True)]
        found += [reward(float(s), sum(counts)) for s, counts in zip(sums, example.supervised, strict=True)]
    return found


def pair_metrics(examples: Sequence[Example], held_out: Sequence[Example], rewards: list[float]) -> Json:
    """How often the `rewards` of held-out pairs order them right, and how often a rule of length that `examples`
    teach."""
    longer = measures.statistics.prefers_longer(measures.statistics.completion_lengths(examples))
    lengths = measures.statistics.completion_lengths(held_out)
    return measures.statistics.pair_statistics(rewards, lengths, [e.head for e in held_out], longer)
