"""Training: optimizer steps, the trainer that takes them, checkpoints.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.training import (
        checkpoint,
        offload,
        plan,
        processes,
        progress,
        reach,
        start,
        steps,
        sums,
        trackers,
        trainer,
    )

__all__ = [
    "checkpoint",
    "offload",
    "plan",
    "processes",
    "progress",
    "reach",
    "start",
    "steps",
    "sums",
    "trackers",
    "trainer",
]

__getattr__ = lazy.modules(__name__)
