"""95 % intervals of what is measured over prompts: of shares, such as win rates, and of any other mean.

Prompts are what was drawn at random, so what belongs to one prompt is taken together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959964
"""The normal distribution's quantile of 0.975."""
NEXT_TO_NOTHING = 1e-9
"""Weight of a value that nothing was seen at and might have been."""
HALVINGS = 32


def share_interval(
    values: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray | None = None
) -> tuple[float, float]:
    """Interval of a share over prompts, which holds near 0 and 1 and with few prompts: `score_interval`, or that of the
    effective number of prompts where several answers a prompt say more than that one allows for (docs/log.md).

    Args:
        values: (G,), of each prompt its share, in [0, 1].
        weights: (G,), how much each stands for, such as its pairs; without them, the same.
    """
    x = np.asarray(values, dtype=float)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=float)
    w = w / w.mean()
    one_answer_each = np.isin(x, (0.0, 0.5, 1.0)).all()
    return score_interval(x, w) if one_answer_each or is_skewed(x, w) else effective_interval(x, w)


def is_skewed(x: np.ndarray, w: np.ndarray) -> bool:
    """Whether prompts are too few for their mean to be near normal: n < 25 G1^2 with Fisher's G1 (Cochran, Sampling
    Techniques, 1977, section 2.15); prompts that are all alike say nothing of it. x: (G,), shares. w: (G,), weights."""
    apart = w * (x - float((w * x).mean()))
    second = float(np.square(apart).mean())
    if second < NEXT_TO_NOTHING:
        return True
    return len(x) < 25 * float((apart**3).mean()) ** 2 / second**3


def effective_interval(x: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """Wilson's interval (1927) of the effective number of prompts, by which independent 0s and 1s had the variance that
    was seen, with Student's quantile for it (Kish 1965; Korn and Graubard, Survey Methodology 24, 1998, section 3).

    x: (G,), shares of prompts, not all the same. w: (G,), weights of mean 1.
    """
    share, n = float((w * x).mean()), len(x)
    variance = float(np.square(w * (x - share)).sum()) / (n * (n - 1))
    effective, t = share * (1 - share) / variance, student(n - 1)
    middle = (share + t**2 / (2 * effective)) / (1 + t**2 / effective)
    half = t / (1 + t**2 / effective) * math.sqrt(variance + (t / (2 * effective)) ** 2)
    return middle - half, middle + half


def score_interval(x: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """Score interval of a share over prompts.

    A share is inside unless the mean of the values is further than `Z` standard errors from it, with the variance that
    the values would have if it were true: that of their empirical likelihood (Owen 1988), values of 0 and 1 possible
    whether seen or not. Of values that are 0 or 1 this is Wilson's interval (1927); with ties of one half, Tango's for
    paired proportions (Stat. Med. 17, 1998, eq. 4 to 6). x: (G,), shares. w: (G,), weights of mean 1.
    """
    return 1 - _upper_end(1 - x, w), _upper_end(x, w)


def _upper_end(x: np.ndarray, w: np.ndarray) -> float:
    """The largest share inside. Values x of the tilted distribution have weights 1 / (1 - s x), s from 0 (as they are)
    up to 1."""
    mean, n = float((w * x).mean()), len(x)
    x, w = np.append(x, 1.0), np.append(w, 1.0)
    seen = np.append(np.ones(n), NEXT_TO_NOTHING)
    low, high, share = 0.0, 60.0, mean  # of -log(1 - s)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        p = seen / ((1 - x) + math.exp(-middle) * x)
        p /= p.sum()
        size = p @ w
        share = float(p @ (w * x) / size)
        variance = float(p @ np.square(w * (x - share)) / size**2)
        low, high = (middle, high) if n * (share - mean) ** 2 <= Z**2 * variance else (low, middle)
    return min(1.0, max(mean, share))


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Student's interval (1908) of a mean over prompts, of which there are two at least. values: (G,)."""
    x = np.asarray(values, dtype=float)
    mean, half = float(x.mean()), student(len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return mean - half, mean + half


def student(freedom: int) -> float:
    """Student's quantile of 0.975: exact for 1 and 2 degrees of freedom, else within 1 in 1,000 (Abramowitz and Stegun
    26.7.5)."""
    if freedom <= 2:
        return math.tan(0.475 * math.pi) if freedom == 1 else 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, v = Z, freedom
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160
    return z + first / v + second / v**2 + third / v**3 + fourth / v**4
