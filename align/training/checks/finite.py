"""A loss that is no number, and where that comes from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from align.ground.errors import NotTrained

REMEDY = "Lower learning_rate or max_grad_norm"


def loss_not_finite(
    title: str, step: int, terms: Mapping[str, Tensor], trained: Mapping[str, Tensor], kept: int | None
) -> NotTrained:
    """Of the loss of `step`, of whose `terms` one is not finite; `kept` is the step of the checkpoint that there is."""
    found = [name for name, value in terms.items() if not torch.isfinite(value)]
    bad = _not_finite(trained)
    where = "; all trained tensors are finite, so the forward itself overflowed"
    if bad:
        where = f"; the first trained tensor that is not finite is {bad[0]}"
    checkpoint = "" if kept is None else f"; the checkpoint of step {kept} is kept"
    return NotTrained(
        f"{title}: step {step}: the loss is not finite (term {', '.join(found)}){where}. {REMEDY}{checkpoint}."
    )


def check_finite(title: str, trained: Mapping[str, Tensor]) -> None:
    """Raises: NotTrained where what the last step made is not finite."""
    if bad := _not_finite(trained):
        raise NotTrained(f"{title}: after the last step {bad[0]} is not finite: its gradient overflowed. {REMEDY}.")


def _not_finite(trained: Mapping[str, Tensor]) -> list[str]:
    return [name for name, p in trained.items() if not torch.isfinite(p).all()]
