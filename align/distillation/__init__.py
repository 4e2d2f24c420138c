"""Learning a teacher's distributions: the teacher, what is kept of it, and the student's side.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.distillation import inputs, on_policy, outcomes, teacher

__getattr__ = lazy.modules(__name__)
