"""Adapters: what of a base they adapt, and how they compute.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.adapters import arithmetic, eva, lora, methods, starts, targets

__getattr__ = lazy.modules(__name__)
