"""Losses as pure functions: per-token or per-sequence tensors in, sums out. They know nothing of batches' splits, ranks or models;
`StageTrainer` divides each term once, by its count over the whole optimizer step and all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from align.core.pack import Batch

Unit = Literal["tokens", "sequences", "pairs"]
Normalise = Literal["sequence", "token", "constant"]


@dataclass(frozen=True)
class Loss:
    """`terms`: name -> (sum, what one counts it by); their means are added up and differentiated.
    `metrics`: name -> (sum, count), for people only, detached."""

    terms: Mapping[str, tuple[Tensor, Unit]]
    metrics: Mapping[str, tuple[Tensor, float | Tensor]] = field(default_factory=dict)

    def scalar(self, counts: Mapping[str, int]) -> Tensor:
        """Sum of the terms, each divided by its count over the whole optimizer step (`counts`)."""
        return torch.stack([total / max(counts[unit], 1) for total, unit in self.terms.values()]).sum()


def next_token(logprobs: Tensor) -> Loss:
    """Negative log-likelihood summed over the tokens that count; `logprobs (T)` is 0 elsewhere."""
    return Loss(terms={"nll": (-logprobs.sum(), "tokens")})


def bradley_terry(scores: Tensor, margins: Tensor, centre: float = 0.0) -> Loss:
    """Reward-model loss summed over pairs: -log sigmoid(r_chosen - r_rejected - margin), Ouyang et al. 2022 (arXiv 2203.02155) eq. 1,
    with the margin of Touvron et al. 2023 (arXiv 2307.09288) eq. 2.

    `scores (S)`: sequences 2i and 2i+1 are pair i's chosen and rejected; `margins (S // 2)`.
    `centre` adds centre * (r_chosen + r_rejected)^2 per pair (Eisenstein et al. 2023, arXiv 2312.09244, eq. 2), which pins the free offset.
    """
    chosen, rejected = scores[0::2], scores[1::2]
    gaps = chosen - rejected
    pairs = len(gaps)
    terms: dict[str, tuple[Tensor, Unit]] = {"bradley_terry": (-F.logsigmoid(gaps - margins).sum(), "pairs")}
    if centre:
        terms["centre"] = (centre * (chosen + rejected).square().sum(), "pairs")
    return Loss(terms=terms, metrics={"accuracy": ((gaps > 0).sum().detach(), pairs), "margin": (gaps.sum().detach(), pairs)})


def dpo(sequence_logprobs: Tensor, ref_sequence_logprobs: Tensor, beta: float, label_smoothing: float = 0.0) -> Loss:
    """DPO loss summed over pairs: Rafailov et al. 2023 (arXiv 2305.18290) eq. 7; `label_smoothing` is the share of flipped labels
    of conservative DPO (Mitchell 2023, ericmitchell.ai/cdpo.pdf, eq. 3).

    Both inputs (S): completion log-probs summed over tokens; sequences 2i and 2i+1 are pair i's chosen and rejected completion.
    """
    rewards = beta * (sequence_logprobs - ref_sequence_logprobs)
    chosen, rejected = rewards[0::2], rewards[1::2]
    margins = chosen - rejected
    pairs = len(margins)
    loss = -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)
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
    """No loss: how many nats per token chosen completions have gained on the reference. All (S), pairs as in `dpo`; `lengths` in tokens."""
    gained = (sequence_logprobs - ref_sequence_logprobs)[0::2].sum().detach()
    return Loss(terms={}, metrics={"logps/chosen_per_token": (gained, lengths[0::2].sum())})


def chosen_nll(logprobs: Tensor, batch: Batch, coef: float) -> Loss:
    """`coef` times each chosen completion's mean negative log-likelihood per token, summed over pairs: RPO, Pang et al. 2024
    (arXiv 2404.19733) eq. 1, the part beside DPO. `logprobs (T)`."""
    lengths = batch.per_sequence(batch.loss_mask.to(logprobs.dtype)).clamp(min=1)
    means = batch.per_sequence(logprobs) / lengths
    return Loss(terms={"chosen_nll": (-coef * means[0::2].sum(), "pairs")})


def surrogate(ratio: Tensor, gain: Tensor, low: float, high: float) -> Tensor:
    """-min(ratio x gain, clip(ratio, 1 - low, 1 + high) x gain), element by element: arXiv 1707.06347 eq. 7, asymmetric as in DAPO."""
    return torch.maximum(-gain * ratio, -gain * ratio.clamp(1 - low, 1 + high))


def ppo_policy(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor, clip: float) -> Loss:
    """Clipped surrogate summed over tokens: Schulman et al. 2017 (arXiv 1707.06347) eq. 7. All (T)."""
    log_ratio = (logprobs - old_logprobs)[loss_mask]
    ratio = log_ratio.exp()
    gain = advantages[loss_mask]
    loss = surrogate(ratio, gain, clip, clip).sum()
    tokens = loss_mask.sum()
    clipped = ((ratio - 1).abs() > clip).sum().detach()
    # k3 estimator of KL(old || new), http://joschu.net/blog/kl-approx.html
    approx_kl = (ratio - 1 - log_ratio).sum().detach()
    return Loss(
        terms={"policy": (loss, "tokens")},
        metrics={"clip_fraction": (clipped, tokens), "approx_kl": (approx_kl, tokens), "ratio": (ratio.sum().detach(), tokens)},
    )


def ppo_value(values: Tensor, old_values: Tensor, returns: Tensor, loss_mask: Tensor, clip: float, coef: float) -> Loss:
    """Clipped value loss summed over tokens: core detail 9 of "The 37 implementation details of PPO"
    (https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/). All (T)."""
    new, old, target = values[loss_mask], old_values[loss_mask], returns[loss_mask]
    clipped = old + (new - old).clamp(-clip, clip)
    loss = 0.5 * coef * torch.maximum((new - target).square(), (clipped - target).square()).sum()
    return Loss(terms={"value": (loss, "tokens")}, metrics={"value/loss": (loss.detach(), loss_mask.sum())})


def entropy_bonus(entropies: Tensor, coef: float) -> Loss:
    """-`coef` x entropy in nats, summed over tokens: arXiv 1707.06347 eq. 9. `entropies (T)`, 0 where nothing counts."""
    return Loss(terms={"entropy": (-coef * entropies.sum(), "tokens")})


def grpo_policy(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    batch: Batch,
    clip_low: float,
    clip_high: float,
    normalise: Normalise,
    longest: int,
) -> Loss:
    """Clipped surrogate of GRPO (arXiv 2402.03300 eq. 3), with DAPO's two clips (arXiv 2503.14476 eq. 8). Inputs (T); see `normalised`."""
    mask = batch.loss_mask
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    loss = torch.where(mask, surrogate(ratio, advantages, clip_low, clip_high), 0.0)
    tokens, counted = mask.sum(), ratio[mask].detach()
    clipped = ((counted < 1 - clip_low) | (counted > 1 + clip_high)).sum()
    return Loss(
        terms={"policy": normalised(loss, batch, normalise, longest)},
        metrics={
            "clip_fraction": (clipped, tokens),
            "approx_kl": ((counted - 1 - log_ratio[mask].detach()).sum(), tokens),
            "ratio": (counted.sum(), tokens),
        },
    )


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, batch: Batch, coef: float, normalise: Normalise, longest: int) -> Loss:
    """`coef` x the k3 estimate of KL(policy || reference): arXiv 2402.03300 eq. 4. Inputs (T); see `normalised`."""
    gap = torch.where(batch.loss_mask, ref_logprobs - logprobs, 0.0)
    kl = gap.exp() - gap - 1
    return Loss(
        terms={"kl": normalised(coef * kl, batch, normalise, longest)}, metrics={"kl_k3": (kl.sum().detach(), batch.loss_mask.sum())}
    )


def normalised(per_token: Tensor, batch: Batch, normalise: Normalise, longest: int) -> tuple[Tensor, Unit]:
    """`per_token (T)`, 0 where nothing counts, as a term: each sequence's mean over its tokens (GRPO), the sum over all tokens (DAPO,
    arXiv 2503.14476 eq. 10), or each sequence's sum over a constant length (Dr. GRPO, arXiv 2503.20783 section 3.2)."""
    if normalise == "token":
        return per_token.sum(), "tokens"
    if normalise == "constant":
        return per_token.sum() / longest, "sequences"
    lengths = batch.per_sequence(batch.loss_mask.to(per_token.dtype)).clamp(min=1)
    return (batch.per_sequence(per_token) / lengths).sum(), "sequences"


def rloo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, batch: Batch, clip: float) -> Loss:
    """Clipped surrogate summed over sequences, each one action (arXiv 2402.14740 section 3.3). Inputs (T); a sequence's advantage stands at
    each of its tokens."""
    log_ratio = batch.per_sequence(torch.where(batch.loss_mask, logprobs - old_logprobs, 0.0))
    ratio, sequences = log_ratio.exp(), len(log_ratio)
    gain = advantages[batch.ends - 1]  # where the last token is predicted
    return Loss(
        terms={"policy": (surrogate(ratio, gain, clip, clip).sum(), "sequences")},
        metrics={
            "clip_fraction": (((ratio - 1).abs() > clip).sum().detach(), sequences),
            "approx_kl": ((ratio - 1 - log_ratio).sum().detach(), sequences),
            "ratio": (ratio.sum().detach(), sequences),
        },
    )


def combine(*losses: Loss) -> Loss:
    """Several losses over one batch as one."""
    terms: dict[str, tuple[Tensor, Unit]] = {}
    metrics: dict[str, tuple[Tensor, float | Tensor]] = {}
    for loss in losses:
        terms.update(loss.terms)
        metrics.update(loss.metrics)
    return Loss(terms, metrics)
