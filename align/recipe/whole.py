"""Settings of stages that may train all weights of a model."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from align.recipe import optimizers
from align.recipe.training import TrainConfig


class WholeConfig(TrainConfig):
    """Training of all weights"""

    optim_args: dict[str, optimizers.Value] = Field(default_factory=dict)
    """What GaLore takes beside its learning rate, by transformers' names: rank (128), update_proj_gap (200), scale
    (0.25) and proj_type (std), as in Zhao et al. 2024 (arXiv 2403.03507)."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        args = given.get("optim_args")
        return super().conflicts(given) + (optimizers.unfit_args(args) if isinstance(args, dict) else [])

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if not self.optimizer.startswith(optimizers.GALORE):
            found["optim_args"] = f"optimizer is {self.optimizer}, which takes none. Leave it out."
        return found
