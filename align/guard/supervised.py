"""The guard of stages that learn from records: sft, pretrain, reward and dpo. It looks at every step, and at a few
held-out records at the start, half way and at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast

from align.ground.terminal import say
from align.guard.limits import Limits
from align.guard.signs import Figures, Warned, Watching
from align.guard.supervised_signs import SIGNS, STRETCHES, Course

if TYPE_CHECKING:
    from align.data.examples import Example
    from align.models.roles import Roles

SAMPLE = 64
"""Held-out records that are looked at, at most."""
HELD_OUT = ("held_out", "overfitting")
"""Signs that are seen on held-out records."""


class Guarded(Protocol):
    """The settings of a stage that the guard reads."""

    @property
    def guard(self) -> Limits: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def max_grad_norm(self) -> float: ...


class GuardState(TypedDict):
    """What a checkpoint keeps of the guard; `run` holds the fields of `Course`."""

    run: dict[str, Any]
    warnings: list[Warned]


class Guard(Watching):
    """Watches one run.

    Args:
        config: of the stage.
        held_out: records, of which some are measured; without any, signs that need them are not seen.
        measure: what some records show of the policy, "loss" at least.
        at_start: what it would find before the first step, where that needs no measuring.
    """

    unit = "step"

    def __init__(
        self,
        config: Guarded,
        title: str,
        roles: Roles,
        held_out: Sequence[Example],
        measure: Callable[[list[Example]], Figures],
        at_start: Figures | None = None,
    ):
        super().__init__(title, config.guard.stop)
        self.limits, self.roles, self.measure, self.at_start = config.guard, roles, measure, at_start
        self.some = list(held_out[:: -(-len(held_out) // SAMPLE)]) if held_out else []  # evenly from all of them
        self.run = Course(records=config.batch_size, max_grad_norm=config.max_grad_norm)

    def state_dict(self) -> GuardState:
        return {"run": dict(vars(self.run)), "warnings": self.warnings}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        saved = cast(GuardState, state)
        self.run, self.warnings = Course(**saved["run"]), saved["warnings"]

    def begin(self, steps: int) -> None:
        self.run.steps = steps
        if self.some:
            say(f"{self.title}: {len(self.some)} held-out records are looked at at the start, half way and at the end")

    def before(self, step: int) -> None:
        """`step` steps are done and one more is to come. Raises: AlignError for a sign that is to stop the run."""
        if step == 0:
            self._look_at_held_out(self.at_start)
        elif step == self.run.steps // 2:
            self._look_at_held_out()

    def step(self, means: Figures) -> None:
        """A step was taken. Raises: AlignError as `before`."""
        self.run.note(means)
        whole = self.run.done % max(1, self.run.steps // STRETCHES) == 0
        names = [name for name in self.limits.signs if name not in HELD_OUT] if whole else ["spike"]
        self._look(names)

    def end(self, folder: Path) -> None:
        """After the last step: look once more, and write the warnings."""
        self._look_at_held_out()
        self._look(self.limits.signs)
        self.write(folder)

    def _look_at_held_out(self, known: Figures | None = None) -> None:
        if not self.some or any(row["step"] == self.run.done for row in self.run.held_out):
            return
        # not all are: the base was loaded for inference
        training = [module for module in self.roles.modules() if module.training]
        self.roles.eval()  # no dropout, and so no random number is drawn
        found = known or self.measure(self.some)
        for module in training:
            module.training = True
        self.run.held_out.append({**found, "records": float(len(self.some)), "step": float(self.run.done)})
        if self.run.done:
            self._look([name for name in self.limits.signs if name in HELD_OUT])

    def _look(self, names: Sequence[str]) -> None:
        self.tell(max(self.run.done - 1, 0), {name: SIGNS[name].told(self.run, self.limits) for name in names})


def pair_figures(scores: Iterable[float]) -> dict[str, float]:
    """Loss (-log sigmoid of what chosen is above rejected) and accuracy of scores in which pairs are neighbours."""
    each = iter(map(float, scores))
    gaps = [chosen - rejected for chosen, rejected in zip(each, each, strict=True)]
    losses = [math.log1p(math.exp(-abs(gap))) + max(-gap, 0.0) for gap in gaps]
    return {"loss": fmean(losses), "accuracy": fmean(gap > 0 for gap in gaps)}


UNTRAINED = {"loss": math.log(2), "accuracy": 0.5}
"""What `pair_figures` finds where both scores are equal, as before the first step."""
