"""A loss that is no number, and where that comes from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def where_not_finite(step: int, terms: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> str:
    """What to say of the loss of `step`, of whose `terms` one is not finite."""
    found = [name for name, value in terms.items() if not torch.isfinite(value)]
    bad = [name for name, p in trained.items() if not torch.isfinite(p).all()]
    where = "; all trained tensors are finite, so the forward itself overflowed"
    if bad:
        where = f"; the first trained tensor that is not finite is {bad[0]}"
    return (
        f"step {step}: the loss is not finite (term {', '.join(found)}){where}. "
        "Lower learning_rate or max_grad_norm; the last checkpoint before this step is kept."
    )
