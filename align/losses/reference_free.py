"""Losses of preference pairs without a reference. Pairs as in `preference`: sequences 2i and 2i+1 are pair i's chosen
and rejected completion."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from align.losses.loss import Loss
from align.packed.pack import Batch


def simpo(rewards: Tensor, gamma: float, label_smoothing: float = 0.0) -> Loss:
    """-log sigmoid(chosen - rejected - gamma) of implicit rewards (S): SimPO, Meng et al. 2024 (arXiv 2405.14734)
    eq. 6; with `label_smoothing` that share of -log sigmoid of minus that, as in TRL's `CPOTrainer`."""
    margins = rewards[0::2] - rewards[1::2] - gamma
    each = (1 - label_smoothing) * F.logsigmoid(margins) + label_smoothing * F.logsigmoid(-margins)
    return Loss(terms={"simpo": (-each.sum(), "pairs")})


def shaped(logprobs: Tensor, alpha: float) -> Tensor:
    """(1 - p^-alpha) / alpha of log p, and log p itself where alpha is 0, its limit: the reward of AlphaPO (Gupta et
    al. 2025, arXiv 2501.03884) before its beta, as in TRL's `CPOTrainer`."""
    return -torch.expm1(-alpha * logprobs) / alpha if alpha else logprobs


def odds_ratio(per_token: Tensor, coef: float) -> Loss:
    """-`coef` log sigmoid(log(odds of chosen / odds of rejected)), odds(p) = p / (1 - p), of mean log-probs per token
    (S): ORPO, Hong et al. 2024 (arXiv 2403.07691) eq. 7."""
    odds = log_odds(per_token)
    gaps = odds[0::2] - odds[1::2]
    return Loss(
        terms={"odds_ratio": (-coef * F.logsigmoid(gaps).sum(), "pairs")},
        metrics={"log_odds_ratio": (gaps.sum().detach(), len(gaps))},
    )


def log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p."""
    return logprobs - log_of_rest(logprobs)


def log_of_rest(logprobs: Tensor) -> Tensor:
    """log(1 - p) of log p, by the one of two forms that is exact there (Maechler 2012, "Accurately computing
    log(1 - exp(-|a|))")."""
    near_one = logprobs > -math.log(2)
    some = torch.where(near_one, logprobs, -1.0), torch.where(near_one, -1.0, logprobs)
    return torch.where(near_one, (-some[0].expm1()).log(), (-some[1].exp()).log1p())


def chosen_tokens(logprobs: Tensor, batch: Batch, coef: float) -> Loss:
    """`coef` times the chosen completions' negative log-likelihood, the mean over their tokens in the step: the part
    beside the pairs' in CPO and ORPO, as in TRL. `logprobs (T)`."""
    total = batch.per_sequence(logprobs)[0::2].sum()
    return Loss(
        terms={"chosen_nll": (-coef * total, "chosen_tokens")},
        metrics={"nll/chosen": (-total.detach(), batch.lengths[0::2].sum())},
    )
