"""Losses of reward models."""

from __future__ import annotations

import torch
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


def of_steps(scores: Tensor, right: Tensor) -> Loss:
    """Process-reward loss summed over steps: -log sigmoid(r) of a right one, -log sigmoid(-r) of a wrong one (Lightman
    et al. 2023, arXiv 2305.20050, section 2.4, without its neutral ones; Uesato et al. 2022, arXiv 2211.14275). The
    cross-entropy of two classes whose logits differ by r, as TRL's PRMTrainer has them. `scores (N)`: at the end of
    each step; `right (N)`: 1 or 0.
    """
    signs = 2 * right - 1
    steps = len(scores)
    return Loss(
        terms={"steps": (-F.logsigmoid(signs * scores).sum(), "tokens")},
        metrics={"step_accuracy": (((signs * scores).sign() + 1).sum().detach() / 2, steps)},
    )


def plackett_luce(scores: Tensor, places: Tensor) -> Loss:
    """Reward-model loss summed over lists of answers, best first: minus the log-probability that the best is chosen of
    all, the next best of the rest, and so on, each by the softmax of scores,

        sum over i of log(sum over j >= i of exp(r_j)) - r_i

    (Plackett 1975; Luce 1959; ListMLE, Xia et al. 2008, eq. 9; of preferences Rafailov et al. 2023, arXiv 2305.18290,
    eq. 18). Of two answers it is Bradley and Terry's. `scores (S)`: the answers of all lists, one list after the other;
    `places (S)`: 0 at the first of each list, then 1, 2, …
    """
    places = places.long()
    first = places == 0
    at = (first.cumsum(0) - 1, places)
    table = scores.new_full((int(first.sum()), int(places.max()) + 1), torch.finfo(scores.dtype).min)  # (L, K)
    there = torch.zeros_like(table, dtype=torch.bool).index_put(at, torch.ones_like(first))
    table = table.index_put(at, scores)
    rest = table.flip(1).logcumsumexp(1).flip(1)[at]  # (S): of an answer and all below it
    ordered = (there[:, :, None] & there[:, None, :]).triu(1)  # (L, K, K)
    gaps = (table[:, :, None] - table[:, None, :])[ordered].detach()
    return Loss(
        terms={"plackett_luce": ((rest - scores).sum(), "lists")},
        metrics={"accuracy": ((gaps > 0).sum(), len(gaps)), "margin": (gaps.sum(), len(gaps))},
    )
