"""Learning from preferences: what its stages share.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.preference import dynamic_beta, labelled, measure, policy, settings, setup, shift

__getattr__ = lazy.modules(__name__)
