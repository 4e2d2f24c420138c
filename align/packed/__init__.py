"""Packed rows: what a forward over groups that share a prefix computes, and whether a base can be served by it.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.packed import (
        attention,
        batches,
        encoder_decoder,
        flex,
        forward,
        head,
        layers,
        pack,
        padding,
        probe,
        rounding,
        token_rows,
        vocabulary,
    )

__getattr__ = lazy.modules(__name__)
