"""Evaluation: models beside each other.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.evaluation import answers, asked, bases, columns, combine, comparison, unlike, written

__getattr__ = lazy.modules(__name__)
