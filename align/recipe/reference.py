"""Settings of a reference that follows the policy."""

from __future__ import annotations

import math

from pydantic import Field, PositiveInt

from align.ground.errors import InputError
from align.recipe.training import TrainConfig

FP32 = 2.0**-24
"""Half of what two neighbouring numbers in fp32 are apart, relative to them."""


class ReferenceConfig(TrainConfig):
    """Reference"""

    ref_model_sync_steps: PositiveInt | None = None
    """Bring the reference to the policy after so many optimizer steps, again and again (TR-DPO, arXiv 2404.09656;
    iterated GRPO, arXiv 2402.03300, algorithm 1), as TRL does by this name; with sampled answers before the next
    rollout. Without it the reference stays where the run began."""
    ref_model_mixup_alpha: float = Field(default=1.0, gt=0.0, le=1.0)
    """How far it is brought: reference <- alpha policy + (1 - alpha) reference, in the model's weights; 1 is the policy
    itself (TRL's default is 0.6)."""

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if self.ref_model_sync_steps is None:
            why = "ref_model_sync_steps is not set, so the reference stays. Set it, or leave this out."
            found["ref_model_mixup_alpha"] = why
        return found

    def check_length(self, steps: int) -> None:
        """Raises: InputError where the schedule is longer than a run of `steps`, or its reference would never move."""
        super().check_length(steps)
        if self.ref_model_sync_steps is not None and self.ref_model_sync_steps >= steps:
            raise InputError(
                f"ref_model_sync_steps is {self.ref_model_sync_steps}, but the run has {steps} steps, so the reference "
                "would stay where it is. Lower it, or leave it out."
            )

    @property
    def snapshots(self) -> int:
        """Adapters that the reference is made of, at most: one where it becomes the policy, else those whose share is
        above fp32's rounding, and no more than there are times that it moves."""
        if self.ref_model_sync_steps is None:
            return 0
        if self.ref_model_mixup_alpha == 1.0:
            return 1
        shares = 1 + math.ceil(math.log(FP32) / math.log1p(-self.ref_model_mixup_alpha))
        steps = self.max_steps
        return shares if steps is None else min(shares, 1 + (steps - 1) // self.ref_model_sync_steps)
