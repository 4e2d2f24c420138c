"""Losses of preference pairs without a reference. Pairs as in `preference`: sequences 2i and 2i+1 are pair i's chosen
and rejected completion."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from align.losses.loss import Loss
from align.packed.pack import Batch


def simpo(per_token: Tensor, beta: float, gamma: float) -> Loss:
    """-log sigmoid(beta (chosen - rejected) - gamma) of mean log-probs per token (S): SimPO, Meng et al. 2024 (arXiv
    2405.14734) eq. 6."""
    gaps = per_token[0::2] - per_token[1::2]
    return Loss(terms={"simpo": (-F.logsigmoid(beta * gaps - gamma).sum(), "pairs")})


def odds_ratio(per_token: Tensor, coef: float) -> Loss:
    """-`coef` log sigmoid(log(odds of chosen / odds of rejected)), odds(p) = p / (1 - p), of mean log-probs per token
    (S): ORPO, Hong et al. 2024 (arXiv 2403.07691) eq. 7."""
    log_odds = per_token - log_of_rest(per_token)
    gaps = log_odds[0::2] - log_odds[1::2]
    return Loss(
        terms={"odds_ratio": (-coef * F.logsigmoid(gaps).sum(), "pairs")},
        metrics={"log_odds_ratio": (gaps.sum().detach(), len(gaps))},
    )


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
