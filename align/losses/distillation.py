"""Losses of a student that learns a teacher's distributions. N positions, K outcomes of each: tokens, and perhaps all
others as one."""

from __future__ import annotations

import math

from torch import Tensor

from align.losses.loss import Loss


def generalised_jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """(N): the generalised Jensen-Shannon divergence of log-probs (N, K), Agarwal et al. 2023 (arXiv 2306.13649) eq. 1
    and 2:

        beta KL(teacher || m) + (1 - beta) KL(student || m),    m = beta teacher + (1 - beta) student,

    at 0 KL(teacher || student), at 1 KL(student || teacher), as TRL has it.
    """
    if beta == 0:
        return kl(teacher, student)
    if beta == 1:
        return kl(student, teacher)
    mixture = (student + math.log1p(-beta)).logaddexp(teacher + math.log(beta))
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """(N): KL(p || q) of log-probs (N, K)."""
    return (p.exp() * (p - q)).sum(-1)


def distilled(divergences: Tensor, forward_kl: Tensor) -> Loss:
    """Divergences (N), summed over the tokens that count; `forward_kl (N)` is told beside it."""
    return Loss(
        terms={"divergence": (divergences.sum(), "tokens")},
        metrics={"kl": (forward_kl.sum().detach(), len(forward_kl))},
    )
