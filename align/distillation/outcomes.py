"""A position's distribution as the teacher's k likeliest tokens and all others as one outcome, of which a row of the
vocabulary is never kept.

Any divergence of these k + 1 outcomes is at most that of the whole distributions (data processing inequality), and it
is that where k is the whole vocabulary.
"""

from __future__ import annotations

import torch
import torch.utils.checkpoint
from torch import Tensor

from align.losses.distillation import generalised_jsd, kl
from align.packed.head import Head
from align.packed.vocabulary import ELEMENTS


def rows_at_a_time(head: Head, hidden: Tensor) -> int:
    """Rows whose logits are held together."""
    return max(1, ELEMENTS[hidden.device.type] // len(head.module.weight))


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
    for part in hidden.split(rows_at_a_time(head, hidden)):
        logits = head(part)[:, :words]
        ids.append(logits.topk(min(k, words), sorted=False).indices)
        logprobs.append(logprobs_of(logits, ids[-1]))
    return torch.cat(ids), torch.cat(logprobs)


def divergences(
    head: Head, hidden: Tensor, ids: Tensor, teacher: Tensor, beta: float, words: int
) -> tuple[Tensor, Tensor]:
    """Generalised JSD of the student's `hidden (N, D)` and the teacher's log-probs of `ids (N, k)`, and KL(teacher ||
    student): (N) each, differentiable in the first. Logits are computed again in the backward."""

    def of(hidden: Tensor, ids: Tensor, teacher: Tensor) -> Tensor:
        student = logprobs_of(head(hidden)[:, :words], ids)
        return torch.stack([generalised_jsd(student, teacher, beta), kl(teacher, student.detach())])

    if len(ids) == 0:
        return hidden.sum()[None][:0], hidden.sum()[None][:0]
    size = rows_at_a_time(head, hidden)
    parts = zip(hidden.split(size), ids.split(size), teacher.split(size), strict=True)
    found = torch.cat([torch.utils.checkpoint.checkpoint(of, *part, use_reentrant=False) for part in parts], 1)
    return found[0], found[1]
