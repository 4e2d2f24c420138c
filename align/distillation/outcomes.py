"""A position's distribution as the teacher's k likeliest tokens and all others as one outcome, of which a row of the
vocabulary is never kept.

Any divergence of these k + 1 outcomes is at most that of the whole distributions (data processing inequality), and it
is that where k is the whole vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from align.losses.distillation import generalised_jsd, kl
from align.packed.head import Head
from align.packed.vocabulary import ELEMENTS
from align.parallel.gather import gathered


def rows_at_a_time(head: Head, hidden: Tensor) -> int:
    """Rows whose logits are held together."""
    return max(1, ELEMENTS[hidden.device.type] // len(head.matrix))


def logprobs_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probs of tokens `ids (N, k)` and of all others together, (N, k + 1), or (N, k) where there are no others;
    logits (N, V)."""
    found = [logits.gather(1, ids)]
    if ids.shape[1] < logits.shape[1]:
        found.append(logits.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True))
    return torch.cat(found, 1) - logits.logsumexp(1, keepdim=True)


@torch.no_grad()
def likeliest(head: Head, hidden: Tensor, k: int, words: int) -> tuple[Tensor, Tensor]:
    """The `k` likeliest of the first `words` tokens at each of `hidden (N, D)`: ids (N, k), and log-probs as
    `logprobs_of` gives them."""
    ids, logprobs = [], []
    with gathered(head.owner):
        for part in hidden.split(rows_at_a_time(head, hidden)):
            logits = head(part)[:, :words]
            ids.append(logits.topk(min(k, words), sorted=False).indices)
            logprobs.append(logprobs_of(logits, ids[-1]))
    return torch.cat(ids), torch.cat(logprobs)


def divergences(
    head: Head, hidden: Tensor, ids: Tensor, teacher: Tensor, beta: float, words: int
) -> tuple[Tensor, Tensor]:
    """Generalised JSD of the student's `hidden (N, D)` and the teacher's log-probs of `ids (N, k)`, and KL(teacher ||
    student): (N) each, differentiable in the first. Of a frozen head derivatives are found beside the values; where it
    trains, logits are computed again in the backward."""
    with gathered(head.owner):
        if len(ids) == 0:
            return hidden.sum()[None][:0], hidden.sum()[None][:0]
        if not head.trainable and not head.replaced():
            found: tuple[Tensor, Tensor] = _Divergences.apply(hidden, ids, teacher, head, beta, words)
            return found
        size = rows_at_a_time(head, hidden)
        parts = zip(hidden.split(size), ids.split(size), teacher.split(size), strict=True)
        again = [
            torch.utils.checkpoint.checkpoint(_of, head, *part, beta, words, use_reentrant=False) for part in parts
        ]
        both = torch.cat(again, 1)
        return both[0], both[1]


def _of(head: Head, hidden: Tensor, ids: Tensor, teacher: Tensor, beta: float, words: int) -> Tensor:
    """Divergence and KL(teacher || student): (2, N)."""
    student = logprobs_of(head(hidden)[:, :words], ids)
    return torch.stack([generalised_jsd(student, teacher, beta), kl(teacher, student.detach())])


class _Divergences(torch.autograd.Function):
    """`_of`, whose backward needs no head, which other processes may have a part of: a row's divergence depends on that
    row of `hidden (N, D)` alone, so that its gradient is a scalar times the derivative found in the forward, (N, D)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, ids: Tensor, teacher: Tensor, head: Head, beta: float, words: int
    ) -> tuple[Tensor, Tensor]:
        size, wanted = rows_at_a_time(head, hidden), ctx.needs_input_grad[0]
        divergences, of_teacher = [], []
        slopes: list[Tensor] = []
        for rows, of_rows, theirs in zip(hidden.split(size), ids.split(size), teacher.split(size), strict=True):
            with torch.set_grad_enabled(wanted):
                x = rows.detach().requires_grad_(wanted)
                found = _of(head, x, of_rows, theirs, beta, words)
                slopes += torch.autograd.grad(found[0].sum(), x) if wanted else ()
            divergences.append(found[0].detach())
            of_teacher.append(found[1].detach())
        ctx.save_for_backward(*([torch.cat(slopes)] if wanted else []))
        measured = torch.cat(of_teacher)
        ctx.mark_non_differentiable(measured)
        return torch.cat(divergences), measured

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * upstream.to(slope.dtype)[:, None], None, None, None, None, None
