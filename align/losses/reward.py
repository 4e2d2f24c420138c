"""Losses of reward models."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from align.losses.loss import Loss, Unit


def bradley_terry(scores: Tensor, margins: Tensor, centre: float = 0.0) -> Loss:
    """Reward-model loss summed over pairs: -log sigmoid(r_chosen - r_rejected - margin), Ouyang et al. 2022 (arXiv
    2203.02155) eq. 1, with the margin of Touvron et al. 2023 (arXiv 2307.09288) eq. 2.

    `scores (S)`: sequences 2i and 2i+1 are pair i's chosen and rejected; `margins (S // 2)`. `centre` adds centre *
    (r_chosen + r_rejected)^2 per pair (Eisenstein et al. 2023, arXiv 2312.09244, eq. 2), which pins the free offset.
    """
    chosen, rejected = scores[0::2], scores[1::2]
    gaps = chosen - rejected
    pairs = len(gaps)
    terms: dict[str, tuple[Tensor, Unit]] = {"bradley_terry": (-F.logsigmoid(gaps - margins).sum(), "pairs")}
    if centre:
        terms["centre"] = (centre * (chosen + rejected).square().sum(), "pairs")
    return Loss(
        terms=terms, metrics={"accuracy": ((gaps > 0).sum().detach(), pairs), "margin": (gaps.sum().detach(), pairs)}
    )
