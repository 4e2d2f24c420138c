"""The guard of reinforcement learning: it looks at the figures of every rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

from align.guard.rollout_limits import RolloutLimits
from align.guard.rollout_signs import SIGNS, as_found, rollout_signs
from align.guard.signs import Figures, Sign, Warned, Watching

__all__ = ["RolloutGuard", "RolloutGuardState", "rollout_signs"]


class RolloutGuardState(TypedDict):
    """What a checkpoint keeps of the guard."""

    rollouts: list[dict[str, float]]
    warnings: list[Warned]


class RolloutGuard(Watching):
    """Watches one run. `monitors` are the rewards of weight 0, which nothing is trained on; a rollout answers `groups`
    prompts; `signs` are those that it looks for."""

    unit = "rollout"

    def __init__(
        self,
        limits: RolloutLimits,
        title: str,
        monitors: Sequence[str],
        groups: int,
        signs: Mapping[str, Sign] = SIGNS,
    ):
        super().__init__(title, limits.stop)
        self.signs = signs
        self.limits, self.monitors, self.groups = limits, monitors, groups
        self.rollouts: list[dict[str, float]] = []

    def state_dict(self) -> RolloutGuardState:
        return {"rollouts": self.rollouts, "warnings": self.warnings}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        saved = cast(RolloutGuardState, state)
        self.rollouts, self.warnings = saved["rollouts"], saved["warnings"]

    def rollout(self, index: int, figures: Figures, sampler: object) -> None:
        """Note the figures of the next rollout and look at them. Raises: AlignError for a sign that is to stop the
        run."""
        self.rollouts.append(dict(figures))
        self._look([name for name in self.signs if name != "ratio"])

    def first_step(self, means: Figures) -> None:
        """Note what the loss of a rollout's first step measured, and look at it; there is nothing while the value alone
        trains.

        Raises: AlignError as `rollout`.
        """
        if "ratio" not in means:
            return
        self.rollouts[-1] |= {f"first/{name}": means[name] for name in ("ratio", "approx_kl")}
        self._look(["ratio"])

    def end(self, sampler: object, folder: Path) -> None:
        self.write(folder)

    def _look(self, names: Sequence[str]) -> None:
        more = {"reward_hacking": (self.monitors, self.groups)}
        signs = as_found(self.signs, self.rollouts, self.limits)
        seen = {name: signs[name].told(self.rollouts, self.limits, *more.get(name, ())) for name in names}
        self.tell(len(self.rollouts) - 1, seen)
