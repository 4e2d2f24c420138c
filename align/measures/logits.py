"""Logits of few examples, whole, to compare two models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from align.data.examples import Example
from align.models.roles import Roles
from align.packed.pack import pack


@torch.no_grad()
def probe_logits(roles: Roles, role: str, examples: Sequence[Example]) -> torch.Tensor:
    """Logits (N, V) of a role at every position of a few examples whose target counts. Small inputs only: V is not
    cut."""
    batch = pack(list(examples)).to(roles.base.device)
    with roles.use(role):
        return roles.head(roles.hidden(batch, batch.rows))


def compare_logits(before: torch.Tensor, after: torch.Tensor) -> dict[str, Any]:
    """Largest difference, mean KL(before || after) in nats per token, and how often the likeliest token agrees."""
    p, q = torch.log_softmax(before.double(), -1), torch.log_softmax(after.double(), -1)
    return {
        "logit_max_abs_diff": (before - after).abs().max().item(),
        "kl": (p.exp() * (p - q)).sum(-1).mean().clamp(min=0.0).item(),  # NaN stays NaN
        "greedy_agreement": (before.argmax(-1) == after.argmax(-1)).double().mean().item(),
    }
