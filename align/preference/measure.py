"""Implicit rewards: what a policy that was trained on pairs holds of their answers, and how well that orders pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from align import measures
from align.data.examples import Example
from align.ground.json import Json

if TYPE_CHECKING:
    from align.models.roles import Roles

ImplicitReward = Callable[[Tensor, Tensor], Tensor]
"""Completions' rewards (S) of their log-probs in nats, less the reference's where there is one, and their numbers of
tokens."""


def implicit_rewards(roles: Roles, examples: Sequence[Example], budget: int, reward: ImplicitReward) -> list[float]:
    """The implicit reward of every sequence, in the order of the examples and within them."""
    return reward(*gained(roles, examples, budget)).tolist()


def gained(roles: Roles, examples: Sequence[Example], budget: int) -> tuple[Tensor, Tensor]:
    """Every completion's log-probs in nats, less the reference's where there is one (S), and its tokens (S), in the
    order of the examples and within them."""
    policy = measures.passes.sequence_logprobs(roles, "policy", examples, budget)
    logprobs, lengths = [], []
    for example, rows in zip(examples, policy, strict=True):
        sums = [row.sum() for row in rows]
        if "ref_logprobs" in example.columns:
            sums = [p - r.sum() for p, r in zip(sums, example.columns["ref_logprobs"], strict=True)]
        logprobs += [float(s) for s in sums]
        lengths += [sum(counts) for counts in example.supervised]
    return torch.tensor(logprobs, dtype=torch.float64), torch.tensor(lengths)


def untrained(own_loss: ImplicitReward) -> float:
    """A loss of pairs before the first step, where nothing is gained on the reference."""
    return float(own_loss(torch.zeros(2, dtype=torch.float64), torch.ones(2)).mean())


def pair_metrics(examples: Sequence[Example], held_out: Sequence[Example], rewards: list[float]) -> Json:
    """How often the `rewards` of held-out pairs order them right, and how often a rule of length that `examples`
    teach."""
    longer = measures.statistics.prefers_longer(measures.statistics.completion_lengths(examples))
    lengths = measures.statistics.completion_lengths(held_out)
    return measures.statistics.pair_statistics(rewards, lengths, [e.head for e in held_out], longer)
