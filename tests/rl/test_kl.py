"""The price of KL: what is measured at a token, and the controller, against values by hand and against a loop that it
has to close."""

from __future__ import annotations

import numpy as np
import pytest

from align.rl.kl import Price, k1, k3


def test_the_controller_by_hand() -> None:
    """Ziegler et al. 2019, section 2.2, with K = 128 / 1,280 = 0.1: an error of +0.1, then one that is clipped to +0.2,
    then to -0.2."""
    price = Price(0.05, target=6.0, horizon=1280)
    price.update(6.6, 128)
    assert price.coef == pytest.approx(0.05 * 1.01, rel=1e-12)
    price.update(60.0, 128)
    assert price.coef == pytest.approx(0.05 * 1.01 * 1.02, rel=1e-12)
    price.update(0.0, 128)
    assert price.coef == pytest.approx(0.05 * 1.01 * 1.02 * 0.98, rel=1e-12)
    fixed = Price(0.05, target=None, horizon=1280)
    fixed.update(60.0, 128)
    assert fixed.coef == 0.05  # negative control: without a target nothing moves


@pytest.mark.parametrize("start", [0.001, 0.05, 2.0])
def test_the_controller_reaches_its_target(start: float) -> None:
    """Where KL is 0.3 / price, the price that gives 6 nats is 0.05; every start ends there."""
    price = Price(start, target=6.0, horizon=1000)
    for _ in range(1000):
        price.update(0.3 / price.coef, 128)
    assert price.coef == pytest.approx(0.05, rel=1e-3)


def test_both_estimators_have_kl_as_their_mean_and_k3_is_never_negative() -> None:
    """Summed over a whole distribution; k1 has either sign, and the variance of k3 is smaller here."""
    draw = np.random.default_rng(0)
    p, q = (np.log(np.exp(x) / np.exp(x).sum()) for x in 0.5 * draw.normal(size=(2, 50)))
    kl = float((np.exp(p) * (p - q)).sum())
    for estimate in (k1, k3):
        assert float((np.exp(p) * estimate(p, q)).sum()) == pytest.approx(kl, rel=1e-12)
    assert k3(p, q).min() >= 0 > k1(p, q).min()
    spread = [float((np.exp(p) * (estimate(p, q) - kl) ** 2).sum()) for estimate in (k1, k3)]
    assert spread[1] < spread[0]
    np.testing.assert_allclose(k3(p, q), np.exp(q - p) - 1 - (q - p), rtol=1e-9, atol=1e-12)
    assert abs(float((np.exp(q) * k1(p, q)).sum()) - kl) > 1e-2  # negative control: drawn from the other distribution
