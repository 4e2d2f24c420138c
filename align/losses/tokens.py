"""Losses of single tokens: next-token likelihood and entropy."""

from __future__ import annotations

from torch import Tensor

from align.losses.loss import Loss


def next_token(logprobs: Tensor) -> Loss:
    """Negative log-likelihood summed over the tokens that count; `logprobs (T)` is 0 elsewhere."""
    return Loss(terms={"nll": (-logprobs.sum(), "tokens")})


def entropy_bonus(entropies: Tensor, coef: float) -> Loss:
    """-`coef` x entropy in nats, summed over tokens: arXiv 1707.06347 eq. 9. `entropies (T)`, 0 where nothing
    counts."""
    return Loss(terms={"entropy": (-coef * entropies.sum(), "tokens")})
