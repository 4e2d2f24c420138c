"""KL from the reference: how it is estimated at a token, and how its price is steered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def k1(policy: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """log p - log p_ref of the drawn tokens: KL(policy || reference) on average, of either sign
    (http://joschu.net/blog/kl-approx.html).

    As a price in the reward its policy gradient is KL's own.
    """
    return policy - reference


def k3(policy: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """r - 1 - log r with r = p_ref / p (same page): KL(policy || reference) on average too, never negative, and of less
    variance.

    As a price in the reward its policy gradient is not KL's: the mean of k3 x grad log p is that of KL(policy ||
    reference) less that of KL(reference || policy), which nearly cancel while the policy is close to the reference.
    """
    return np.expm1(reference - policy) - (reference - policy)


ESTIMATORS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"k1": k1, "k3": k3}


@dataclass
class Price:
    """What a nat of KL costs. With a target it is steered in proportion to the error (Ziegler et al. 2019, arXiv
    1909.08593, section 2.2):

        e = clip(KL / target - 1, -0.2, 0.2),    coef <- coef (1 + e x samples / horizon).

    The paper's K_beta is samples / horizon: 0.1 there; 10,000 samples are the horizon of its code
    (lm-human-preferences).
    """

    coef: float
    target: float | None
    """Nats per answer; None leaves the price as it is."""
    horizon: int
    """Samples."""

    def update(self, kl: float, samples: int) -> None:
        """Take note of `samples` answers that were `kl` nats from the reference on average."""
        if self.target is not None:
            self.coef *= 1 + min(max(kl / self.target - 1, -0.2), 0.2) * samples / self.horizon
