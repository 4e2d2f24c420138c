"""The generalised Jensen-Shannon divergence against TRL's GKD: value and gradient, whole vocabulary and block by block;
of the likeliest tokens against sums by hand."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn

from align.distillation import outcomes
from align.losses import distillation

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from trl.experimental.gkd import GKDTrainer

N, V, D = 23, 50, 8


class Head:
    """A head of random rows."""

    def __init__(self, seed: int, trainable: bool = False) -> None:
        torch.manual_seed(seed)
        self.module: Any = nn.Linear(D, V, bias=False, dtype=torch.float64).requires_grad_(trainable)
        self.owner, self.matrix, self.trainable = self.module, self.module.weight, trainable

    def replaced(self) -> list[Any]:
        return []

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.module(hidden)


def setting(trainable: bool = False) -> tuple[Any, torch.Tensor, Any, torch.Tensor]:
    student, teacher = Head(0, trainable), Head(1)
    torch.manual_seed(2)
    hidden, theirs = torch.randn(2, N, D, dtype=torch.float64)
    return student, hidden.requires_grad_(), teacher, theirs


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_it_is_trls(beta: float, trainable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean over the tokens that count, and the gradient of the student's hidden states, of a frozen head and of one
    that trains, with the whole vocabulary as outcomes, in blocks of few rows. Negative control: another beta gives
    another loss."""
    monkeypatch.setattr(outcomes, "ELEMENTS", {"cpu": 4 * V})
    head, hidden, teacher, theirs = setting(trainable)
    labels = torch.where(torch.arange(N) % 3 == 0, -100, 1)
    counted = labels != -100

    def loss(beta: float) -> torch.Tensor:
        ids, wanted = outcomes.likeliest(teacher, theirs[counted], V, V)
        found = distillation.distilled(*outcomes.divergences(head, hidden[counted], ids, wanted, beta, V))
        return found.scalar({"tokens": int(counted.sum())})

    (mine,) = torch.autograd.grad(loss(beta), hidden)
    expected = GKDTrainer.generalized_jsd_loss(head(hidden)[None], teacher(theirs)[None], labels[None], beta=beta)
    (wanted,) = torch.autograd.grad(expected, hidden)
    assert loss(beta).item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(mine, wanted, atol=1e-6, rtol=0)
    assert abs((loss(0.3) - expected).item()) > 1e-3


def test_the_likeliest_and_the_rest_by_hand() -> None:
    """Of k tokens and all others as one outcome; rows beyond `words` have no part. At most the whole divergence, and
    the more tokens the nearer."""
    head, hidden, teacher, theirs = setting()
    words = V - 7
    p, q = (torch.softmax(of(x)[:, :words], -1) for of, x in ((teacher, theirs), (head, hidden)))
    whole = (p * (p / q).log()).sum(-1)
    before = torch.zeros(N, dtype=torch.float64)
    for k in (1, 5, 20, words - 1, words):
        ids, wanted = outcomes.likeliest(teacher, theirs, k, words)
        found, forward = outcomes.divergences(head, hidden, ids, wanted, 0.0, words)
        for i in range(N):
            top = p[i].topk(k).indices
            assert set(ids[i].tolist()) == set(top.tolist())
            rest = [1 - p[i, top].sum(), 1 - q[i, top].sum()]
            by_hand = (p[i, top] * (p[i, top] / q[i, top]).log()).sum()
            by_hand += rest[0] * (rest[0] / rest[1]).log() if k < words else 0.0
            assert found[i].item() == pytest.approx(by_hand.item(), abs=1e-9)
        torch.testing.assert_close(found, forward)
        assert (before <= found + 1e-9).all() and (found <= whole + 1e-9).all()
        before = found.detach()
    torch.testing.assert_close(found, whole)


def test_nothing_that_counts() -> None:
    head, hidden, *_ = setting()
    ids, wanted = torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 4)
    found, _ = outcomes.divergences(head, hidden[:0], ids, wanted, 0.5, V)
    assert len(found) == 0 and distillation.distilled(found, found).scalar({"tokens": 0}) == 0
