"""A base in shards over the processes of a run: each holds its part, and gathers a layer for the moment that it is
used.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.parallel import gather, group, in_4_bits, late, launch, shards

__getattr__ = lazy.modules(__name__)
