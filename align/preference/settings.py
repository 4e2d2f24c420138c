"""Settings that the stages share which learn from preferences."""

from __future__ import annotations

from pydantic import PositiveFloat

from align.guard import limits
from align.recipe import TrainConfig


class PreferenceConfig(TrainConfig):
    """Learning from preferences"""

    learning_rate: PositiveFloat = 5e-5
    """Peak learning rate; ten times the 5e-6 usual for full fine-tuning (Rafailov et al. use 1e-6, Zephyr 5e-7 to
    5e-6), as LoRA wants."""
    guard: limits.PairLimits = limits.PairLimits()
