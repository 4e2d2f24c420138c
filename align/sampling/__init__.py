"""Sampling from exactly the policy's distribution.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.sampling import (
        answers,
        decode,
        dialogue,
        draw,
        generating,
        growing,
        rollout,
        stopping,
        streaming,
        together,
    )

__getattr__ = lazy.modules(__name__)
