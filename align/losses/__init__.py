"""Losses: pure functions, tensors in, sums out.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.losses import (
        distillation,
        divergence,
        grpo,
        loss,
        policy,
        preference,
        reference_free,
        reward,
        tokens,
        unpaired,
        value,
    )

__getattr__ = lazy.modules(__name__)
