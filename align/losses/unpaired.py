"""Losses of single answers that are called good or bad, with a reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from align.losses.loss import Loss


def kto(log_ratios: Tensor, good: Tensor, kl: Tensor, beta: float, weights: tuple[float, float] = (1.0, 1.0)) -> Loss:
    """weight x (1 - sigmoid(+-beta (log ratio - kl))), + for good answers, - for others, summed over answers:
    Ethayarajh et al. 2024 (arXiv 2402.01306) eq. 7. `weights`: of good and of other answers.

    All (S). `log_ratios`: log policy - log reference; `kl`: the estimate of KL(policy || reference) of the whole step,
    in nats, without gradient. With 0 for it, apo_zero_unpaired: D'Oosterlinck et al. 2024 (arXiv 2408.06266) eq. 7, of
    single answers, as in TRL.
    """
    gained = beta * torch.where(good, log_ratios - kl, kl - log_ratios)
    weight = torch.where(good, weights[0], weights[1])
    measured = beta * log_ratios.detach()  # of all: to pick some, a GPU would have to say which
    return Loss(
        terms={"kto": ((weight * (1 - torch.sigmoid(gained))).sum(), "sequences")},
        metrics={
            "rewards/chosen": (torch.where(good, measured, 0.0).sum(), good.sum()),
            "rewards/rejected": (torch.where(good, 0.0, measured).sum(), (~good).sum()),
            "kl": (kl.sum(), len(kl)),
        },
    )


def bco(
    log_ratios: Tensor, good: Tensor, shift: Tensor, beta: float, weights: tuple[float, float] = (1.0, 1.0)
) -> Loss:
    """-weight x log sigmoid(+-(beta log ratio - shift)), + for good answers, - for others, summed over answers: Jung et
    al. 2024 (arXiv 2404.04656). `weights`: of good and of other answers.

    All (S). `log_ratios`: log policy - log reference; `shift`: the mean reward so far, without gradient.
    """
    rewards = beta * log_ratios
    gained = torch.where(good, rewards - shift, shift - rewards)
    measured = rewards.detach()
    return Loss(
        terms={"bco": (-(torch.where(good, weights[0], weights[1]) * F.logsigmoid(gained)).sum(), "sequences")},
        metrics={
            "rewards/chosen": (torch.where(good, measured, 0.0).sum(), good.sum()),
            "rewards/rejected": (torch.where(good, 0.0, measured).sum(), (~good).sum()),
            "shift": (shift.sum(), len(shift)),
        },
    )
