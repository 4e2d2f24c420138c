"""f-divergences between policy and reference: the f' of a ratio, which stands for its logarithm in preference losses.

Wang et al. 2023 (arXiv 2309.16240) table 1. Inputs: log policy - log reference. `align.dpo` names those it takes.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

LARGEST = 80.0
"""What exp can take in 32 bits; TRL holds it there too."""


def reverse_kl(log_ratios: Tensor, alpha: float) -> Tensor:
    """log r: what DPO has."""
    return log_ratios


def forward_kl(log_ratios: Tensor, alpha: float) -> Tensor:
    """1 - 1 / r."""
    return 1 - (-log_ratios).exp()


def js_divergence(log_ratios: Tensor, alpha: float) -> Tensor:
    """log(2 r / (1 + r))."""
    return math.log(2) + F.logsigmoid(log_ratios)


def alpha_divergence(log_ratios: Tensor, alpha: float) -> Tensor:
    """(r^(alpha - 1) - 1) / (alpha - 1); at 1 it is reverse KL."""
    return ((alpha - 1) * log_ratios).clamp(max=LARGEST).expm1() / (alpha - 1)
