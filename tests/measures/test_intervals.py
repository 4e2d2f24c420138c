"""Intervals against scipy's and the paper's own equations, and how often they hold, by simulation; the percentile
bootstrap, which they replaced, is the negative control."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from scipy import optimize, stats

from align.measures.intervals import Z, effective_interval, mean_interval, score_interval, share_interval, student


@pytest.mark.parametrize("n", [1, 2, 20, 315, 1000])
def test_without_ties_it_is_wilsons(n: int) -> None:
    for right in {0, 1, n // 3, n}:
        truth = stats.binomtest(right, n).proportion_ci(method="wilson")
        assert share_interval([1.0] * right + [0.0] * (n - right)) == pytest.approx((truth.low, truth.high), abs=1e-6)
    assert share_interval([0.5] * 20) != pytest.approx(
        tuple(stats.binomtest(10, 20).proportion_ci(method="wilson")), abs=0.05
    )


def tango(won: int, lost: int, n: int) -> tuple[float, float]:
    """Tango 1998, eq. 4 to 6, for the difference of two paired proportions, which is twice a win rate less 1."""

    def statistic(gap: float) -> float:
        b, c = -won - lost + (2 * n - won + lost) * gap, -lost * gap * (1 - gap)
        least = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        return (won - lost - n * gap) / math.sqrt(max(n * (2 * least + gap * (1 - gap)), 1e-300))

    gap = (won - lost) / n
    low = optimize.brentq(lambda g: statistic(g) - Z, -1 + 1e-12, gap - 1e-12) if gap > -1 else -1.0
    high = optimize.brentq(lambda g: statistic(g) + Z, gap + 1e-12, 1 - 1e-12) if gap < 1 else 1.0
    return (1 + low) / 2, (1 + high) / 2


@pytest.mark.parametrize(
    ("won", "lost", "n"), [(5, 3, 20), (0, 0, 20), (1, 0, 20), (12, 2, 50), (0, 9, 44), (300, 120, 1000)]
)
def test_with_ties_it_is_tangos(won: int, lost: int, n: int) -> None:
    values = [1.0] * won + [0.0] * lost + [0.5] * (n - won - lost)
    assert share_interval(values) == pytest.approx(tango(won, lost, n), abs=1e-6)


def test_students() -> None:
    for freedom in (1, 2, 3, 9, 19, 99):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)
    values = np.random.default_rng(0).normal(3, 2, 12)
    assert mean_interval(values) == pytest.approx(
        stats.t.interval(0.95, 11, values.mean(), stats.sem(values)), rel=1e-4
    )
    assert mean_interval([0.3] * 50) == pytest.approx((0.3, 0.3))


# ---- how often they hold ---------------------------------------------------------------------------------------------


def bootstrap(values: np.ndarray, draw: np.random.Generator) -> tuple[float, float]:
    """Percentile bootstrap of a mean (Efron 1979)."""
    low, high = np.quantile(values[draw.integers(0, len(values), (400, len(values)))].mean(1), [0.025, 0.975])
    return float(low), float(high)


def held_exactly(
    n: int, interval: Callable[[np.ndarray], tuple[float, float]], cases: Mapping[float, float]
) -> list[float]:
    """By the probability of each outcome of n prompts with one answer each, how often a win rate is inside, for `cases`
    of it and ties."""
    outcomes = [(won, lost) for won in range(n + 1) for lost in range(n + 1 - won)]
    ends = np.array([interval(np.repeat([1.0, 0.0, 0.5], [won, lost, n - won - lost])) for won, lost in outcomes])
    counts = np.array([(won, lost, n - won - lost) for won, lost in outcomes])
    return [
        float(
            stats.multinomial.pmf(counts, n, [p - ties / 2, 1 - p - ties / 2, ties])[
                (ends[:, 0] <= p) & (p <= ends[:, 1])
            ].sum()
        )
        for p, ties in cases.items()
    ]


TIED = {0.05: 0.06, 0.1: 0.1, 0.25: 0.2, 0.5: 0.3, 0.65: 0.6, 0.9: 0.1, 0.95: 0.06}
"""Win rate -> share of ties."""


@pytest.mark.parametrize("n", [20, 50])
def test_win_rates_hold(n: int) -> None:
    """In 93 to 97 % of evaluations. Negative control: the bootstrap near 0 and 1."""
    assert all(0.93 <= held <= 0.972 for held in held_exactly(n, share_interval, TIED))


def test_the_bootstrap_did_not() -> None:
    draw = np.random.default_rng(1)
    assert max(held_exactly(20, lambda values: bootstrap(values, draw), {0.05: 0.06, 0.95: 0.06})) < 0.88


def test_without_ties_so_few_prompts_allow_no_more() -> None:
    """20 prompts, 0.05, no ties: 0 to 2 wins are 0.925 of outcomes, 0 to 3 are 0.984, whatever the interval; Wilson's
    has the former."""
    (held,) = held_exactly(20, share_interval, {0.05: 0.0})
    assert held == pytest.approx(stats.binom.cdf(2, 20, 0.05), abs=1e-9)


@pytest.mark.parametrize(("n", "ways"), [(20, 600), (100, 400), (1000, 200)])
def test_win_rates_of_several_answers_hold(n: int, ways: int) -> None:
    """Of four answers each, some prompts being easier than others: gaps of scores are N(m + prompt's N(0, 1), 2). Up to
    two standard errors of the simulation."""
    draw, error = np.random.default_rng([n, 7]), 2 * math.sqrt(0.05 * 0.95 / ways)
    for p in (0.05, 0.5, 0.95):
        held = 0
        for _ in range(ways):
            gap = stats.norm.ppf(p) * math.sqrt(3) + draw.normal(size=(n, 1, 1))
            low, high = share_interval((gap + draw.normal(size=(n, 4, 1)) > draw.normal(size=(n, 1, 4))).mean((1, 2)))
            held += low <= p <= high
        assert 0.93 - error <= held / ways <= 0.97 + error, (p, held / ways)


@pytest.mark.parametrize("answers", [4, 8])
def test_identical_policies(answers: int) -> None:
    """Two of one policy, which a judge calls right or wrong, 20 prompts, hard and easy ones: one half is inside in 93
    to 97 % (up to two standard errors of the simulation). Negative controls: the score interval, inside nearly always;
    answers as if each had a prompt of its own, too narrow by far where a prompt's are alike."""
    draw, error = np.random.default_rng(11), 2 * math.sqrt(0.05 * 0.95 / 500)
    hard = draw.beta(0.5, 0.5, (500, 20))
    shares = 0.5 + (draw.binomial(answers, hard) - draw.binomial(answers, hard)) / (2 * answers)
    held = np.mean([low <= 0.5 <= high for low, high in map(share_interval, shares)])
    assert 0.93 - error <= held <= 0.97 + error
    assert np.mean([low <= 0.5 <= high for low, high in (score_interval(x, np.ones(20)) for x in shares[:100])]) > 0.98
    alike = [np.repeat(draw.random(20) < 0.5, answers) for _ in range(200)]
    assert np.mean([low <= 0.5 <= high for low, high in map(share_interval, alike)]) < 0.8


def test_the_effective_number_of_prompts() -> None:
    """Against the roots of (mean - p)^2 = t^2 p (1 - p) / effective number, with scipy's quantile; 0s and 1s of prompts
    of one size have all prompts but one (the variance's divisor) as effective number."""
    x, w = np.array([0.25, 0.5, 1.0, 0.75, 0.0, 0.875]), np.array([1.5, 0.5, 1.0, 1.0, 1.0, 1.0])
    mean = np.average(x, weights=w)
    variance = (w**2 * (x - mean) ** 2).sum() / 30
    a = stats.t.ppf(0.975, 5) ** 2 * variance / (mean * (1 - mean))
    ends = np.roots([1 + a, -(2 * mean + a), mean**2])
    assert effective_interval(x, w) == pytest.approx(sorted(ends), rel=1e-3)
    assert share_interval(np.tile(x, 2), np.tile(w, 2)) == effective_interval(np.tile(x, 2), np.tile(w, 2))
    ones = np.repeat([1.0, 0.0], [12, 9])
    t = stats.t.ppf(0.975, 20)
    wilson = stats.binomtest(12, 21).proportion_ci(1 - 2 * stats.norm.sf(t * math.sqrt(21 / 20)), "wilson")
    assert effective_interval(ones, np.ones(21)) == pytest.approx((wilson.low, wilson.high), rel=1e-3)


@pytest.mark.parametrize("shares", [[0.5] * 20, [0.25] * 20, [0.5] * 19 + [0.5625], [0.0] * 18 + [0.375, 0.25]])
def test_what_says_too_little_has_the_score_interval(shares: list[float]) -> None:
    """All prompts alike, or a few that are not. Negative control: as many on both sides."""
    assert share_interval(shares) == score_interval(np.array(shares), np.ones(20))
    even = np.tile([0.375, 0.5, 0.5, 0.625], 5)
    assert share_interval(even) == effective_interval(even, np.ones(20)) != score_interval(even, np.ones(20))
    assert np.ptp(shares) == 0 or stats.skew(shares) ** 2 * 25 > 20


def test_where_most_prompts_tie() -> None:
    """A policy that solves nothing beside one that solves a few prompts nearly always, 8 answers: the true win rate is
    inside. Negative control: the effective number of prompts alone, which takes the many ties for evidence."""
    draw = np.random.default_rng(3)
    solved = draw.binomial(8, draw.beta(0.05, 0.95, (300, 20))) / 8
    held = [
        np.mean([low <= 0.525 <= high for low, high in (interval(0.5 + x / 2) for x in solved if np.ptp(x))])
        for interval in (share_interval, lambda x: effective_interval(x, np.ones(20)))
    ]
    assert held[0] >= 0.93 and held[1] < 0.9


def test_pairs_of_one_prompt_are_taken_together() -> None:
    """100 prompts of four pairs, right in 80 %, but more often on some prompts. Negative control: pairs as if each had
    its own prompt."""
    draw, together, apart = np.random.default_rng(2), [], []
    for _ in range(600):
        pairs = draw.random((100, 4)) < draw.beta(4, 1, (100, 1))
        together.append(share_interval(pairs.mean(1), [4] * 100))
        apart.append(share_interval(pairs.ravel()))
    held = [np.mean([low <= 0.8 <= high for low, high in found]) for found in (together, apart)]
    assert 0.93 <= held[0] <= 0.97 and held[1] < 0.91


def test_weights_of_prompts() -> None:
    """Counted alike they are as none; else the mean of all pairs is inside, as often as it should be."""
    values = [0.25, 0.5, 1.0, 0.75, 0.0, 1.0]
    assert share_interval(values, [3] * 6) == pytest.approx(share_interval(values))
    low, high = share_interval(values, [10, 1, 1, 1, 1, 1])
    assert low < (2.5 + 3.25) / 15 < high
    draw, held = np.random.default_rng(3), []
    for _ in range(600):
        sizes = draw.integers(1, 9, 60)
        shares = draw.binomial(sizes, draw.beta(4, 1, 60)) / sizes
        low, high = share_interval(shares, sizes)
        held.append(low <= 0.8 <= high)
    assert 0.93 <= np.mean(held) <= 0.97
