"""What a run is held to while it trains: it starts at its reference, which may follow it, reaches all that it trains,
and stays finite.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.training.checks import allocation, finite, moving_reference, reach, start

__getattr__ = lazy.modules(__name__)
