"""Measures: passes over examples without gradients, and statistics of what they give.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.measures import intervals, judgement, logits, passes, statistics

__getattr__ = lazy.modules(__name__)
