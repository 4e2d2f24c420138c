"""A loss: sums and what one counts them by. Losses are pure functions of per-token or per-sequence tensors; they know
nothing of batches' splits, ranks or models; `StageTrainer` divides each term once, by its count over the whole
optimizer step and all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from align.packed.pack import Batch

Unit = Literal["tokens", "chosen_tokens", "sequences", "pairs", "lists"]
Normalise = Literal["sequence", "sum", "token", "constant"]


@dataclass(frozen=True)
class Loss:
    """`terms`: name -> (sum, what one counts it by); their means are added up and differentiated.
    `metrics`: name -> (sum, count), for people only, detached."""

    terms: Mapping[str, tuple[Tensor, Unit]]
    metrics: Mapping[str, tuple[Tensor, float | Tensor]] = field(default_factory=dict)

    def scalar(self, counts: Mapping[str, int]) -> Tensor:
        """Sum of the terms, each divided by its count over the whole optimizer step (`counts`)."""
        return torch.stack([total / max(counts[unit], 1) for total, unit in self.terms.values()]).sum()


def normalised(per_token: Tensor, batch: Batch, normalise: Normalise, longest: int) -> tuple[Tensor, Unit]:
    """`per_token (T)`, 0 where nothing counts, as a term: each sequence's mean over its tokens (GRPO), each sequence's
    sum (LUSPO, arXiv 2602.05261), the sum over all tokens (DAPO, arXiv 2503.14476 eq. 10), or each sequence's sum over
    a constant length (Dr. GRPO, arXiv 2503.20783 section 3.2)."""
    if normalise == "token":
        return per_token.sum(), "tokens"
    if normalise == "sum":
        return per_token.sum(), "sequences"
    if normalise == "constant":
        return per_token.sum() / longest, "sequences"
    lengths = batch.per_sequence(batch.loss_mask.to(per_token.dtype)).clamp(min=1)
    return (batch.per_sequence(per_token) / lengths).sum(), "sequences"


def combine(*losses: Loss) -> Loss:
    """Several losses over one batch as one."""
    terms: dict[str, tuple[Tensor, Unit]] = {}
    metrics: dict[str, tuple[Tensor, float | Tensor]] = {}
    for loss in losses:
        terms.update(loss.terms)
        metrics.update(loss.metrics)
    return Loss(terms, metrics)
