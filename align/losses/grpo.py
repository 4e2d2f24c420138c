"""Losses of answers that are drawn in groups, by what is made of the policy's ratio to the policy that drew them.

Each is a function of the answers in a packed row that gives one loss per token, (T); `align.grpo` names those it takes,
and `summed` adds them up. While the policy is still the one that drew, the ratio is 1 and all have one gradient, that
of -advantage x log-prob (gmpo's over the length); they differ in how it fades as the ratio leaves 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from align.losses.loss import Loss, Normalise, normalised
from align.losses.policy import surrogate
from align.packed.pack import Batch

BySign = tuple[float, float]
"""A number where the advantage is above 0, and another elsewhere."""


@dataclass(frozen=True)
class Actions:
    """The answers in a packed row, tensors (T), and what losses are told beside them."""

    logprobs: Tensor
    old_logprobs: Tensor
    """Of the policy that drew the answers."""
    advantages: Tensor
    batch: Batch
    clip_low: float
    clip_high: float
    ratio_max: float
    sapo_temperature: BySign
    vespo_k: BySign
    vespo_lambda: BySign
    of_sequences: bool = False
    """The ratio of a whole sequence, by its geometric mean, in the place of each of its tokens': GSPO, Zheng et al.
    2025 (arXiv 2507.18071) eq. 7."""

    @cached_property
    def token_log_ratio(self) -> Tensor:
        return torch.where(self.batch.loss_mask, self.logprobs - self.old_logprobs, 0.0)

    @cached_property
    def log_ratio(self) -> Tensor:
        return self.mean_of_sequence(self.token_log_ratio) if self.of_sequences else self.token_log_ratio

    @cached_property
    def ratio(self) -> Tensor:
        return self.log_ratio.exp()

    def mean_of_sequence(self, values: Tensor) -> Tensor:
        """The mean of `values` over each sequence, at each of its tokens."""
        return self.at_tokens(self.batch.per_sequence(values) / self.batch.lengths.clamp(min=1))

    def at_tokens(self, values: Tensor) -> Tensor:
        """(S) -> (T), 0 where nothing counts."""
        return torch.where(self.batch.loss_mask, values[self.batch.segment_ids], 0.0)

    def by_sign(self, values: BySign) -> Tensor:
        return torch.where(self.advantages > 0, *values)


PolicyLoss = Callable[[Actions], Tensor]

# ---- one loss per token ----------------------------------------------------------------------------------------------


def clip(actions: Actions) -> Tensor:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A): GRPO (arXiv 2402.03300) eq. 3, with DAPO's two clips (arXiv
    2503.14476) eq. 8. Where A is below 0, r itself is limited to `ratio_max`: the two-sided clip of INTELLECT-2 (arXiv
    2505.07291), as in TRL."""
    ratio = actions.ratio.clamp(max=actions.ratio_max)
    return surrogate(ratio, actions.advantages, actions.clip_low, actions.clip_high)


def cispo(actions: Actions) -> Tensor:
    """-sg(min(r, 1 + clip_high)) A log p: no token loses its gradient, its weight is limited. MiniMax-M1 (arXiv
    2506.13585) eq. 4 and 5, with no limit below, as there."""
    weights = actions.ratio.detach().clamp(max=1 + actions.clip_high)
    return -weights * actions.advantages * actions.logprobs


def sapo(actions: Actions) -> Tensor:
    """-4 / t sigmoid(t (r - 1)) A, with a temperature t by the sign of A: a soft gate in the place of the clip, whose
    gradient is largest at r = 1. SAPO, Gao et al. 2025 (arXiv 2511.20347) eq. 5 and 6."""
    temperature = actions.by_sign(actions.sapo_temperature)
    return -torch.sigmoid(temperature * (actions.ratio - 1)) * 4 / temperature * actions.advantages


def vespo(actions: Actions) -> Tensor:
    """-sg(W^k exp(lambda (1 - W))) A log p, W the ratio of the whole answer, a product over its tokens, k and lambda by
    the sign of A: VESPO, Shen et al. 2026 (arXiv 2602.10693) eq. 20. log W is kept between log 1e-8 and 20, as in
    TRL."""
    log_ratio = actions.token_log_ratio.detach().clamp(-20, 20)
    of_answer = actions.batch.per_sequence(log_ratio).clamp(math.log(1e-8), 20)
    log_ratio = actions.at_tokens(of_answer)
    k, decay = actions.by_sign(actions.vespo_k), actions.by_sign(actions.vespo_lambda)
    weights = (decay + k * log_ratio - decay * log_ratio.exp()).exp()
    return -weights * actions.advantages * actions.logprobs


def gmpo(actions: Actions) -> Tensor:
    """-(geometric mean of the answer's ratios) A, where log r is clipped to -clip_low below (A < 0) and clip_high above
    (A > 0) before: GMPO, Zhao et al. 2025 (arXiv 2507.20673), as in TRL."""
    log_ratio = actions.token_log_ratio
    above, below = log_ratio.clamp(max=actions.clip_high), log_ratio.clamp(min=-actions.clip_low)
    clipped = torch.where(actions.advantages > 0, above, below)
    return -actions.mean_of_sequence(clipped).exp() * actions.advantages


# ---- over a micro-batch ----------------------------------------------------------------------------------------------


def summed(actions: Actions, loss: PolicyLoss, normalise: Normalise, longest: int) -> Loss:
    """One of the losses above as a term; see `normalised`. `clip_fraction` is of those that clip."""
    batch = actions.batch
    per_token = torch.where(batch.loss_mask, loss(actions), 0.0)
    tokens, counted = len(batch.rows), actions.ratio[batch.rows].detach()
    metrics: dict[str, tuple[Tensor, float | Tensor]] = {}
    if loss in BEYOND:
        metrics["clip_fraction"] = (BEYOND[loss](actions)[batch.rows].sum(), tokens)
    metrics["approx_kl"] = ((counted - 1 - actions.log_ratio[batch.rows].detach()).sum(), tokens)
    metrics["ratio"] = (counted.sum(), tokens)
    return Loss({"policy": normalised(per_token, batch, normalise, longest)}, metrics)


def _beyond_clips(actions: Actions) -> Tensor:
    return (actions.ratio < 1 - actions.clip_low) | (actions.ratio > 1 + actions.clip_high)


def _beyond_limit(actions: Actions) -> Tensor:
    return actions.ratio > 1 + actions.clip_high


def _beyond_log_clips(actions: Actions) -> Tensor:
    return (actions.token_log_ratio < -actions.clip_low) | (actions.token_log_ratio > actions.clip_high)


BEYOND: Mapping[PolicyLoss, Callable[[Actions], Tensor]] = {
    clip: _beyond_clips,
    cispo: _beyond_limit,
    gmpo: _beyond_log_clips,
}
"""Which tokens' ratios are beyond what a loss clips to, (T)."""
