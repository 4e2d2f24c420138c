"""Losses of preference pairs with a reference.

A pairwise loss is a function of the pairs of a micro-batch that gives one loss per pair, (P); `align.dpo` names those
it takes, weighs them, and sums them over pairs. `aot` and `aot_unpaired` sort a whole optimizer step; what they need to
know of it is measured before (`coupling`), after which they are sums over pairs as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from align.losses.loss import Loss
from align.packed.pack import Batch


@dataclass(frozen=True)
class Pairs:
    """The pairs of a micro-batch, all (P), and what losses are told beside them."""

    chosen: Tensor
    """log policy - log reference of the chosen completions; by another f-divergence than KL, its f' of that ratio."""
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    beta: float | Tensor = 0.1
    """One for all, or (1) where it is another one in each step."""
    label_smoothing: float = 0.0
    tau: float = 0.05
    coupled: Tensor | None = None
    """(2 P): of each sequence what `coupling` found, chosen and rejected of a pair being neighbours."""

    @property
    def margins(self) -> Tensor:
        """How much further the policy has moved towards chosen than towards rejected completions, times beta."""
        return self.beta * self.chosen - self.beta * self.rejected

    @property
    def gap_per_token(self) -> Tensor:
        return self.chosen / self.chosen_tokens.clamp(min=1) - self.rejected / self.rejected_tokens.clamp(min=1)


Pairwise = Callable[[Pairs], Tensor]

# ---- one loss per pair -----------------------------------------------------------------------------------------------


def sigmoid(pairs: Pairs) -> Tensor:
    """-log sigmoid(margin): Rafailov et al. 2023 (arXiv 2305.18290) eq. 7; with `label_smoothing` the conservative DPO
    of Mitchell 2023 (ericmitchell.ai/cdpo.pdf) eq. 3."""
    return _smoothed(_minus_log_sigmoid, pairs.margins, pairs.label_smoothing)


def hinge(pairs: Pairs) -> Tensor:
    """max(0, 1 - margin): RSO, Liu et al. 2023 (arXiv 2309.06657) eq. 9, after SLiC (arXiv 2305.10425)."""
    return _smoothed(lambda margins: (1 - margins).relu(), pairs.margins, pairs.label_smoothing)


def robust(pairs: Pairs) -> Tensor:
    """DPO's loss as it would be without the share `label_smoothing` of labels that are turned round, in expectation:
    rDPO, Chowdhury et al. 2024 (arXiv 2403.00409), as in TRL."""
    share = pairs.label_smoothing
    clean, turned = _minus_log_sigmoid(pairs.margins), _minus_log_sigmoid(-pairs.margins)
    return ((1 - share) * clean - share * turned) / (1 - 2 * share)


def ipo(pairs: Pairs) -> Tensor:
    """(gap - 1 / (2 beta))^2: Azar et al. 2023 (arXiv 2310.12036) eq. 17, of log ratios per token, as its authors
    confirmed to TRL that they are meant."""
    return (pairs.gap_per_token - 1 / (2 * pairs.beta)).square()


def sigmoid_norm(pairs: Pairs) -> Tensor:
    """DPO of log ratios per token: Lambert et al. 2024 (Tulu 3, arXiv 2411.15124), as in TRL."""
    return _minus_log_sigmoid(pairs.beta * pairs.gap_per_token)


def exo_pair(pairs: Pairs) -> Tensor:
    """KL of the policy's choice from (1 - e, e), e = `label_smoothing`: EXO, Ji et al. 2024 (arXiv 2402.00856)
    eq. 16."""
    first, second = F.logsigmoid(pairs.margins), F.logsigmoid(-pairs.margins)
    wanted = math.log1p(-pairs.label_smoothing), math.log(pairs.label_smoothing)
    return first.exp() * (first - wanted[0]) + second.exp() * (second - wanted[1])


def nca_pair(pairs: Pairs) -> Tensor:
    """Noise contrastive alignment of two answers: Chen et al. 2024 (arXiv 2402.05369), as in TRL."""
    chosen, rejected = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(pairs: Pairs) -> Tensor:
    """A classifier of chosen against rejected completions: BCO, Jung et al. 2024 (arXiv 2404.04656), without the shift,
    as in TRL."""
    return -F.logsigmoid(pairs.beta * pairs.chosen) - F.logsigmoid(-pairs.beta * pairs.rejected)


def sppo_hard(pairs: Pairs) -> Tensor:
    """(chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2: SPPO, Wu et al. 2024 (arXiv 2405.00675) eq. 4.7, where
    the chosen answer wins for sure."""
    half = 0.5 / pairs.beta
    return (pairs.chosen - half).square() + (pairs.rejected + half).square()


def apo_zero(pairs: Pairs) -> Tensor:
    """Chosen completions become likelier, rejected ones less: D'Oosterlinck et al. 2024 (arXiv 2408.06266) eq. 7, where
    chosen answers are better than the model's own."""
    return 1 - torch.sigmoid(pairs.beta * pairs.chosen) + torch.sigmoid(pairs.beta * pairs.rejected)


def apo_down(pairs: Pairs) -> Tensor:
    """Chosen completions become less likely, rejected ones still less: eq. 8 there, where the model's own answers are
    better than chosen ones."""
    gap = pairs.beta * (pairs.chosen - pairs.rejected)
    return torch.sigmoid(pairs.beta * pairs.chosen) + 1 - torch.sigmoid(gap)


def discopop(pairs: Pairs) -> Tensor:
    """DPO's loss and exp(-margin), mixed by sigmoid(margin / tau): Lu et al. 2024 (arXiv 2406.08414) eq. 5."""
    margins = pairs.margins
    share = torch.sigmoid(margins / pairs.tau)
    return _minus_log_sigmoid(margins) * (1 - share) + (-margins).exp() * share


def aot(pairs: Pairs) -> Tensor:
    """DPO's loss of the policy's k-th largest log ratio of chosen to rejected in the step against the reference's k-th
    largest: Melnyk et al. 2024 (arXiv 2406.05882), paired, as in TRL."""
    assert pairs.coupled is not None
    return _smoothed(_minus_log_sigmoid, pairs.margins + pairs.beta * pairs.coupled[0::2], pairs.label_smoothing)


def aot_unpaired(pairs: Pairs) -> Tensor:
    """DPO's loss of the step's k-th largest chosen log ratio against its k-th largest rejected one: the unpaired form
    there. Of the two each pair holds one; each is trained against the other as it was measured, and half of both losses
    is the pair's, so that sum and gradient are those of the whole step."""
    assert pairs.coupled is not None
    of_chosen = pairs.beta * (pairs.chosen - pairs.coupled[0::2])
    of_rejected = pairs.beta * (pairs.coupled[1::2] - pairs.rejected)
    margins = torch.stack([of_chosen, of_rejected])
    both = _smoothed(_minus_log_sigmoid, margins, pairs.label_smoothing).sum(0)
    return both - both.detach() / 2


def coupling(name: str, sequence_ratios: Tensor, ref_sequence_logprobs: Tensor) -> Tensor:
    """What `aot` (by its name) or `aot_unpaired` need to know of a whole step, (S). Inputs (S): log policy - log
    reference of all its sequences, and log reference.

    aot: by how much the reference's own log ratio of each pair is above the one of the same rank; aot_unpaired: the log
    ratio of the same rank on the other side.
    """
    chosen, rejected = sequence_ratios[0::2], sequence_ratios[1::2]
    if name == "aot":
        of_reference = ref_sequence_logprobs[0::2] - ref_sequence_logprobs[1::2]
        ranks = (of_reference + chosen - rejected).argsort(stable=True).argsort()
        return (of_reference - of_reference.sort().values[ranks]).repeat_interleave(2)
    of_chosen = rejected.sort().values[chosen.argsort(stable=True).argsort()]
    of_rejected = chosen.sort().values[rejected.argsort(stable=True).argsort()]
    return torch.stack([of_chosen, of_rejected], 1).flatten()


def _minus_log_sigmoid(margins: Tensor) -> Tensor:
    return -F.logsigmoid(margins)


def _smoothed(loss: Callable[[Tensor], Tensor], margins: Tensor, share: float) -> Tensor:
    """A loss of margins where a share of the pairs is taken the other way round."""
    return (1 - share) * loss(margins) + share * loss(-margins)


# ---- over a micro-batch ----------------------------------------------------------------------------------------------


def dpo(pairs: Pairs, losses: Mapping[Pairwise, float], importance: Tensor | float = 1.0) -> Loss:
    """Pairwise losses, each times its weight, summed over pairs; `importance (P)` weighs pairs, as WPO does."""
    each = [weight * loss(pairs) for loss, weight in losses.items()]
    return Loss(terms={"dpo": ((torch.stack(each).sum(0) * importance).sum(), "pairs")})


def rewards(sequence_rewards: Tensor) -> Loss:
    """No loss: implicit rewards (S) of pairs, for people to look at."""
    chosen, rejected = sequence_rewards.detach()[0::2], sequence_rewards.detach()[1::2]
    margins, pairs = chosen - rejected, len(chosen)
    return Loss(
        terms={},
        metrics={
            "rewards/chosen": (chosen.sum(), pairs),
            "rewards/rejected": (rejected.sum(), pairs),
            "rewards/margins": (margins.sum(), pairs),
            "rewards/accuracies": ((margins > 0).sum(), pairs),
        },
    )


def beta_of_step(beta: float | Tensor, pairs: int) -> Loss:
    """No loss: the beta that pairs had, for people to look at."""
    return Loss(terms={}, metrics={"beta": (torch.as_tensor(beta).detach().sum() * pairs, pairs)})


def chosen_shift(sequence_logprobs: Tensor, ref_sequence_logprobs: Tensor, lengths: Tensor) -> Loss:
    """No loss: how many nats per token chosen completions have gained on the reference. All (S), pairs as in `rewards`;
    `lengths` in tokens."""
    gained = (sequence_logprobs - ref_sequence_logprobs)[0::2].sum().detach()
    return Loss(terms={}, metrics={"logps/chosen_per_token": (gained, lengths[0::2].sum())})


def chosen_nll(logprobs: Tensor, batch: Batch, coef: float) -> Loss:
    """`coef` times each chosen completion's mean negative log-likelihood per token, summed over pairs: RPO, Pang et al.
    2024 (arXiv 2404.19733) eq. 1, the part beside DPO. `logprobs (T)`."""
    lengths = batch.lengths.clamp(min=1)
    means = batch.per_sequence(logprobs) / lengths
    return Loss(terms={"chosen_nll": (-coef * means[0::2].sum(), "pairs")})


def importance(logprobs: Tensor, half_temperature: Tensor, batch: Batch) -> Tensor:
    """(P), without gradient: how likely both completions of a pair are under the policy: WPO, Zhou et al. 2024
    (arXiv 2406.11827) eq. 2, with its alignment of weights as in TRL.

    That divides each token's probability by sum(p^2) over the vocabulary; log p - log sum(p^2) is the log-prob at
    temperature one half less that at 1. Both inputs (T), 0 where nothing counts.
    """
    lengths = batch.lengths.clamp(min=1)
    weights = (batch.per_sequence((half_temperature - logprobs).detach()) / lengths).exp()
    return weights[0::2] * weights[1::2]


def desensitised(batch: Batch, alpha: float) -> Tensor:
    """(T): 1, and `alpha` at tokens of a completion beyond the length of the shorter one of its pair: LD-DPO, Liu et
    al. 2024 (arXiv 2409.06411), as in TRL."""
    lengths = batch.lengths
    shorter = torch.minimum(lengths[0::2], lengths[1::2]).repeat_interleave(2)
    before = lengths.cumsum(0) - lengths
    place = batch.loss_mask.long().cumsum(0) - before[batch.segment_ids]  # of a token in its completion, from 1 on
    return torch.where(place > shorter[batch.segment_ids], alpha, 1.0)
