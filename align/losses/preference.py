"""Losses of preference pairs with a reference.

A pairwise loss is a function of margins (P), each beta times how much further the policy has moved towards a pair's
chosen completion than towards its rejected one; it gives one loss per pair, (P). `align.dpo` names those it takes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from align.losses.loss import Loss
from align.packed.pack import Batch


def sigmoid(margins: Tensor) -> Tensor:
    """-log sigmoid(margin): Rafailov et al. 2023 (arXiv 2305.18290) eq. 7."""
    return -F.logsigmoid(margins)


def hinge(margins: Tensor) -> Tensor:
    """max(0, 1 - margin): RSO, Liu et al. 2023 (arXiv 2309.06657) eq. 9, after SLiC (arXiv 2305.10425)."""
    return (1 - margins).relu()


def dpo(
    sequence_logprobs: Tensor,
    ref_sequence_logprobs: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
    pairwise: Callable[[Tensor], Tensor] = sigmoid,
) -> Loss:
    """A pairwise loss summed over pairs. `label_smoothing` is the share of pairs taken the other way round, as in
    conservative DPO (Mitchell 2023, ericmitchell.ai/cdpo.pdf, eq. 3).

    Both inputs (S): completion log-probs summed over tokens; sequences 2i and 2i+1 are pair i's chosen and rejected
    completion.
    """
    rewards = beta * (sequence_logprobs - ref_sequence_logprobs)
    chosen, rejected = rewards[0::2], rewards[1::2]
    margins = chosen - rejected
    pairs = len(margins)
    loss = (1 - label_smoothing) * pairwise(margins) + label_smoothing * pairwise(-margins)
    return Loss(
        terms={"dpo": (loss.sum(), "pairs")},
        metrics={
            "rewards/chosen": (chosen.sum().detach(), pairs),
            "rewards/rejected": (rejected.sum().detach(), pairs),
            "rewards/margins": (margins.sum().detach(), pairs),
            "rewards/accuracies": ((margins > 0).sum().detach(), pairs),
        },
    )


def chosen_shift(sequence_logprobs: Tensor, ref_sequence_logprobs: Tensor, lengths: Tensor) -> Loss:
    """No loss: how many nats per token chosen completions have gained on the reference. All (S), pairs as in `dpo`;
    `lengths` in tokens."""
    gained = (sequence_logprobs - ref_sequence_logprobs)[0::2].sum().detach()
    return Loss(terms={}, metrics={"logps/chosen_per_token": (gained, lengths[0::2].sum())})


def chosen_nll(logprobs: Tensor, batch: Batch, coef: float) -> Loss:
    """`coef` times each chosen completion's mean negative log-likelihood per token, summed over pairs: RPO, Pang et al.
    2024 (arXiv 2404.19733) eq. 1, the part beside DPO. `logprobs (T)`."""
    lengths = batch.per_sequence(batch.loss_mask.to(logprobs.dtype)).clamp(min=1)
    means = batch.per_sequence(logprobs) / lengths
    return Loss(terms={"chosen_nll": (-coef * means[0::2].sum(), "pairs")})
