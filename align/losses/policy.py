"""Losses of policies that are trained on their own samples."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from align.losses.loss import Loss, Normalise, normalised
from align.packed.pack import Batch


def surrogate(ratio: Tensor, gain: Tensor, low: float, high: float) -> Tensor:
    """-min(ratio x gain, clip(ratio, 1 - low, 1 + high) x gain), element by element: arXiv 1707.06347 eq. 7, asymmetric
    as in DAPO."""
    return torch.maximum(-gain * ratio, -gain * ratio.clamp(1 - low, 1 + high))


def ppo_policy(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, rows: Tensor, clip: float) -> Loss:
    """Clipped surrogate summed over tokens: Schulman et al. 2017 (arXiv 1707.06347) eq. 7. All (T), but for `rows`,
    those that count: (N), or a mask, for whose rows a GPU is waited for."""
    log_ratio = (logprobs - old_logprobs)[rows]
    ratio = log_ratio.exp()
    gain = advantages[rows]
    loss = surrogate(ratio, gain, clip, clip).sum()
    tokens = len(gain)
    clipped = ((ratio - 1).abs() > clip).sum().detach()
    # k3 estimator of KL(old || new), http://joschu.net/blog/kl-approx.html
    approx_kl = (ratio - 1 - log_ratio).sum().detach()
    return Loss(
        terms={"policy": (loss, "tokens")},
        metrics={
            "clip_fraction": (clipped, tokens),
            "approx_kl": (approx_kl, tokens),
            "ratio": (ratio.sum().detach(), tokens),
        },
    )


def kl_penalty(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    batch: Batch,
    coef: float,
    normalise: Normalise,
    longest: int,
    ratio: Tensor | float = 1.0,
) -> Loss:
    """`coef` x the k3 estimate of KL(policy || reference): arXiv 2402.03300 eq. 4. Inputs (T); see `normalised`. Times
    each token's `ratio` to the policy that drew it, the gradient is that of this KL on average, the ratio's own
    included: DeepSeek-V3.2 (arXiv 2512.02556) section 3.1."""
    gap = torch.where(batch.loss_mask, ref_logprobs - logprobs, 0.0)
    kl = gap.exp() - gap - 1
    return Loss(
        terms={"kl": normalised(coef * ratio * kl, batch, normalise, longest)},
        metrics={"kl_k3": (kl.sum().detach(), batch.loss_mask.sum())},
    )


def k2_penalty(logprobs: Tensor, ref_logprobs: Tensor, rows: Tensor, coef: float) -> Loss:
    """`coef` x the k2 estimate of KL(policy || reference), half the square of log p - log p_ref, summed over tokens;
    its gradient is that of KL (http://joschu.net/blog/kl-approx.html; REINFORCE++ with a group's baseline, arXiv
    2501.03262). All (T), but for the `rows` that count."""
    k2 = 0.5 * (logprobs - ref_logprobs)[rows].square().sum()
    return Loss(terms={"kl": (coef * k2, "tokens")}, metrics={"kl_k2": (k2.detach(), len(logprobs[rows]))})


def rloo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, batch: Batch, clip: float) -> Loss:
    """Clipped surrogate summed over sequences, each one action (arXiv 2402.14740 section 3.3). Inputs (T); a sequence's
    advantage stands at each of its tokens."""
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


def online_dpo(
    log_ratios: Tensor, sides: Tensor, group_size: int, beta: float, kind: Literal["sigmoid", "ipo"]
) -> Loss:
    """DPO's loss (arXiv 2305.18290 eq. 7) or IPO's (arXiv 2310.12036 eq. 17) of each group's best answer against its
    worst, summed over groups, as TRL's `OnlineDPOTrainer` has both.

    All (S), `group_size` neighbours answer one prompt. `log_ratios`: log policy - log reference of whole answers;
    `sides`: 1 at the best, -1 at the worst, 0 elsewhere; a group without sides has no loss.
    """
    gaps = (log_ratios * sides).reshape(-1, group_size).sum(1)  # (G)
    paired = sides.reshape(-1, group_size).ne(0).any(1)
    each = -F.logsigmoid(beta * gaps) if kind == "sigmoid" else (gaps - 0.5 / beta).square()
    rewards, pairs = beta * log_ratios.detach(), paired.sum()
    # counted by sequences, of which a group has `group_size`
    return Loss(
        terms={"online_dpo": (group_size * torch.where(paired, each, 0.0).sum(), "sequences")},
        metrics={
            "rewards/chosen": (torch.where(sides > 0, rewards, 0.0).sum(), pairs),
            "rewards/rejected": (torch.where(sides < 0, rewards, 0.0).sum(), pairs),
            "rewards/margins": (beta * torch.where(paired, gaps.detach(), 0.0).sum(), pairs),
            "rewards/accuracies": (((gaps > 0) & paired).sum(), pairs),
        },
    )


def moved(logprobs: Tensor, old_logprobs: Tensor, rows: Tensor) -> Loss:
    """How far the policy is from the one that was sampled: no term, but `approx_kl`, the k3 estimate of KL(old || new)
    per token. All (T), but for the `rows (N)` that count."""
    log_ratio = (logprobs - old_logprobs)[rows].detach()
    return Loss({}, {"approx_kl": ((log_ratio.exp() - 1 - log_ratio).sum(), len(log_ratio))})
