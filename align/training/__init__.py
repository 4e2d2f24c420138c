"""Training: optimizer steps, the trainer that takes them, checkpoints.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.training import (
        arguments,
        checkpoint,
        checks,
        cost,
        looking,
        noise,
        offload,
        optimizers,
        plan,
        processes,
        step_module,
        steps,
        tally,
        telling,
        trainer,
        weights,
    )

__getattr__ = lazy.modules(__name__)
