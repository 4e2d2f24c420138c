"""Logits of few examples, whole, to compare two models."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from align.data.examples import Example
from align.ground.progress import Task
from align.models.roles import Roles
from align.packed.pack import pack

FEW_ROWS = 16
"""Rows of logits that are compared at a time: of a vocabulary of 152k, 19 MB in fp64."""


@torch.no_grad()
def probe_logits(roles: Roles, role: str, examples: Sequence[Example]) -> torch.Tensor:
    """Logits (N, V) of a role at every position of a few examples whose target counts. Small inputs only: V is not
    cut."""
    batch = pack(list(examples)).to(roles.base.device)
    with roles.use(role), Task("computing logits"):
        return roles.head(roles.hidden(batch, batch.rows))


def compare_logits(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    """Of logits (N, V): largest difference, mean KL(before || after) in nats per token, and how often the likeliest
    token agrees. In fp64, which a few rows at a time are taken to."""
    # made before what comes and goes, which would leave gaps between what stays
    difference, kl, agreement = (
        before.new_zeros(len(before), dtype=dtype) for dtype in (before.dtype, torch.float64, torch.float64)
    )
    for rows in torch.arange(len(before)).split(FEW_ROWS):
        one, two = before[rows], after[rows]
        p, q = torch.log_softmax(one.double(), -1), torch.log_softmax(two.double(), -1)
        difference[rows] = (one - two).abs().amax(-1)
        kl[rows] = (p.exp() * (p - q)).sum(-1)
        agreement[rows] = (one.argmax(-1) == two.argmax(-1)).double()
    return {
        "logit_max_abs_diff": difference.max().item(),
        "kl": kl.mean().clamp(min=0.0).item(),  # NaN stays NaN
        "greedy_agreement": agreement.mean().item(),
    }
