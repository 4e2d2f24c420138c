"""Draws by blocks of the vocabulary follow the softmax exactly, whatever the blocks."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from align.sampling.draw import draw


def logits(rows: int, words: int) -> Tensor:
    return 3 * torch.randn(rows, words, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def naive(z: Tensor, at: Tensor) -> Tensor:
    """The inverse of the distribution function in one running sum over all words."""
    ends = torch.softmax(z.double(), -1).cumsum(-1)
    return torch.searchsorted(ends, at[:, None] * ends[:, -1:], right=True)[:, 0]


@pytest.mark.parametrize("width", [1, 7, 64, 100, 1000])
def test_the_token_is_that_of_one_running_sum(width: int) -> None:
    """Also where a block is shorter than the others, and under the log-prob of log_softmax; of other numbers it is
    another token."""
    z, at = logits(500, 100), torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens, logprobs = draw(iter(z.clone().split(width, 1)), at)
    assert (tokens == naive(z, at)).double().mean() > 0.995  # fp32 and fp64 sums part where a number falls on an end
    wanted = torch.log_softmax(z.double(), -1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), wanted, atol=1e-5, rtol=1e-5)
    assert (tokens == naive(z, at.flip(0))).double().mean() < 0.5  # negative control


def test_draws_follow_the_distribution() -> None:
    z = logits(1, 50)
    at = torch.rand(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    counts = torch.bincount(draw(iter(z.expand(40_000, -1).clone().split(16, 1)), at)[0], minlength=50).double()
    share = torch.softmax(z[0].double(), -1)
    often = share > 2e-4
    fit = lambda p: chisquare(counts[often].numpy(), (p[often] / p[often].sum() * counts[often].sum()).numpy()).pvalue  # noqa: E731
    assert fit(share) > 1e-3
    assert fit(torch.softmax(z[0].double() / 1.1, -1)) < 1e-6


def test_words_without_a_share_are_never_drawn() -> None:
    """At either end of what a number can be, with blocks that are -inf throughout."""
    z = torch.full((4, 40), -torch.inf)
    z[:, 13], z[:, 21] = 0.0, 300.0
    at = torch.tensor([0.0, 1e-300, 0.5, 1 - 2**-53], dtype=torch.float64)
    for width in (1, 8, 40):
        tokens, logprobs = draw(iter(z.clone().split(width, 1)), at)
        assert set(tokens.tolist()) <= {13, 21} and torch.isfinite(logprobs[tokens == 21]).all()


def test_without_numbers_the_likeliest_is_taken() -> None:
    z = logits(20, 100)
    for width in (1, 9, 100):
        tokens, logprobs = draw(iter(z.clone().split(width, 1)), None)
        assert torch.equal(tokens, z.argmax(-1)) and not logprobs.any()
