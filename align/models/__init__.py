"""Models: one frozen base, the roles on it, and what is written of them.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.models import (
        adapted,
        base,
        heads,
        in_parts,
        merged,
        precision,
        process,
        reloads_equal,
        roles,
        save,
        skeleton,
        trunk,
        trunk_cache,
        weights,
    )

__getattr__ = lazy.modules(__name__)
