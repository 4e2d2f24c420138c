"""Exchange: what comes from elsewhere and what leaves.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.exchange import card, card_figures, classifier, foreign, hub, loading, transfer

__getattr__ = lazy.modules(__name__)
