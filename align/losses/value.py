"""Losses of value roles."""

from __future__ import annotations

import torch
from torch import Tensor

from align.losses.loss import Loss


def ppo_value(values: Tensor, old_values: Tensor, returns: Tensor, rows: Tensor, clip: float, coef: float) -> Loss:
    """Clipped value loss summed over tokens: core detail 9 of "The 37 implementation details of PPO"
    (https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/). All (T), but for
    the `rows` that count, as `ppo_policy` takes them."""
    new, old, target = values[rows], old_values[rows], returns[rows]
    clipped = old + (new - old).clamp(-clip, clip)
    loss = 0.5 * coef * torch.maximum((new - target).square(), (clipped - target).square()).sum()
    return Loss(terms={"value": (loss, "tokens")}, metrics={"value/loss": (loss.detach(), len(new))})
