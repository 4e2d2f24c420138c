"""The guard of stages that learn from records: sft, pretrain, reward and dpo. It looks at every step, and at held-out
records: at a few of them at the start, half way and at the end, or at all as often as the stage's settings say."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast

from align import training
from align.ground.terminal import say
from align.guard import looks
from align.guard.answers import Answers, Look
from align.guard.limits import Limits
from align.guard.signs import Figures, Warned, Watching
from align.guard.supervised_signs import SIGNS, STRETCHES, Course

if TYPE_CHECKING:
    from align.data.examples import Example
    from align.models.roles import Roles
    from align.sampling.rollout import Sampler

SAMPLE = 64
"""Held-out records that are looked at where the stage's settings ask for no looks."""
TOO_FAST = ("diverged", "held_out", "clipped", "chosen")
"""Signs whose remedy is a lower learning rate."""
HELD_OUT = ("held_out", "overfitting")
"""Signs that are seen on held-out records."""


class Guarded(looks.LookSettings, Protocol):
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
    answers: list[Look]


class Guard(Watching):
    """Watches one run.

    Args:
        config: of the stage.
        held_out: records, of which some are measured; without any, signs that need them are not seen.
        measure: what some records show of the policy, "loss" at least ("eval/loss" is the same).
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
        self.config, self.often = config, config.eval_steps is not None or config.eval_epochs is not None
        # by chance: records may take turns, as good and bad answers do
        few = sorted(random.Random(0).sample(range(len(held_out)), min(SAMPLE, len(held_out))))
        self.some = list(held_out) if self.often else [held_out[i] for i in few]
        self.run = Course(records=config.batch_size, max_grad_norm=config.max_grad_norm)
        self.answers: Answers | None = None
        """Prompts that are answered at every look, by `sampler`."""
        self.sampler: Sampler | None = None

    def state_dict(self) -> GuardState:
        said = self.answers.answers if self.answers else []
        return {"run": dict(vars(self.run)), "warnings": self.warnings, "answers": said}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        saved = cast(GuardState, state)
        self.run, self.warnings = Course(**saved["run"]), saved["warnings"]
        if self.answers:
            self.answers.answers = saved["answers"]

    def begin(self, steps: int, per_epoch: int) -> None:
        self.run.steps, self.schedule = steps, looks.schedule(self.config, steps, per_epoch)
        if self.some:
            more = "" if self.often else "; it is said where they get worse, eval_steps draws a curve"
            many = f"{len(self.some):,} held-out record{'s are' if len(self.some) != 1 else ' is'}"
            say(f"{self.title}: {many} looked at {self.schedule}{more}")
        patience, count = self.config.patience, self.schedule.count()
        if self.often and patience is not None and patience + 1 >= count:
            say(f"{self.title}: patience is {patience}, and there are {count} looks, so it cannot end the run earlier")

    def look(self, step: int) -> Figures:
        """`step` steps are done: look at held-out records where that is due. What was found, for the log, where the
        stage's settings ask for looks. Raises: AlignError for a sign that is to stop the run."""
        if not self.some or not self.schedule.due(step):
            return {}
        # not all are: the base was loaded for inference
        training_now = [module for module in self.roles.modules() if module.training]
        self.roles.eval()  # no dropout, and so no random number is drawn
        measured = (None if step else self.at_start) or self.measure(self.some)
        own = json.dumps({name.removeprefix("eval/"): value for name, value in measured.items()})
        found: dict[str, float] = json.loads(training.processes.from_first(own))  # ranks are to decide the same
        self.run.held_out.append({**found, "records": float(len(self.some)), "step": float(step)})
        if self.often:
            self._tell_look(found)
        if self.answers and self.sampler:
            self.answers.ask(self.sampler, step)
            self.sampler.forget()
        for module in training_now:
            module.training = True
        if step:
            self._look([name for name in self.limits.signs if name in (*HELD_OUT, "no_learning")])
        return found if self.often else {}

    def _tell_look(self, found: Figures) -> None:
        rows = self.run.held_out
        figures = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        before = min((row["loss"] for row in rows[:-1]), default=-math.inf)
        lowest = ", the lowest loss so far" if rows[-1]["loss"] < before else ""
        say(f"{self.title}: step {rows[-1]['step']:.0f} of {self.run.steps}: held-out {figures}{lowest}")

    @property
    def best(self) -> int | None:
        """The step whose weights are to be kept; None where the last ones are, or none was looked at yet."""
        row = looks.best(self.run.held_out) if self.often and self.config.keep == "best" else None
        return round(row["step"]) if row else None

    @property
    def ended(self) -> bool:
        """Whether there are to be no more steps."""
        if not self.often or self.config.patience is None:
            return False
        losses = [row["loss"] for row in looks.trained(self.run.held_out)]
        return looks.waited(losses, self.config.min_delta) >= self.config.patience

    def step(self, means: Figures) -> None:
        """A step was taken. Raises: AlignError as `look`."""
        self.run.note(means)
        whole = self.run.done % max(1, self.run.steps // STRETCHES) == 0
        names = [name for name in self.limits.signs if name not in HELD_OUT] if whole else ["spike"]
        to_come = bool(self.some) and self.schedule.due(self.run.done)  # a look, which tells whether it learns
        self._look([name for name in names if not (to_come and name == "no_learning")])

    def end(self, folder: Path) -> None:
        """After the last step: say what becomes of the run, and write the warnings and the answers."""
        self._look(self.limits.signs)
        self.write(folder)
        if self.answers:
            self.answers.write(folder)
        taken, row = self.run.done, looks.best(self.run.held_out)
        if taken < self.run.steps:
            lower = f"lower by more than {self.config.min_delta:g}" if self.config.min_delta else "lower"
            say(
                f"{self.title}: ended after {taken} of {self.run.steps} steps: the held-out loss was no {lower} in "
                f"{self.config.patience} look{'s' * (self.config.patience != 1)}"
            )
        if row and self.best not in (None, taken):
            last = self.run.held_out[-1]["loss"]
            say(f"{self.title}: kept: step {self.best}, held-out loss {row['loss']:.4g}; of the last it is {last:.4g}")
        if worse := self._worse():
            say(f"{self.title}: {worse}")

    def _worse(self) -> str:
        """That what is kept is worse than the start, where it is."""
        rows = {row["step"]: row["loss"] for row in self.run.held_out} if self.often else {}
        kept = self.run.done if self.best is None else self.best
        before, after = rows.get(0, math.nan), rows.get(kept, math.nan)
        if not after > before:
            return ""
        whose = (
            "the weights of the last step are" if kept == self.run.done else f"the weights kept, of step {kept}, are"
        )
        return f"{whose} worse than the start: held-out loss {after:.4g}, and {before:.4g} before the first step"

    def figures(self) -> dict[str, float]:
        """For the manifest, where the stage's settings ask for looks: the best of them, and of which step the weights
        are."""
        row = looks.best(self.run.held_out) if self.often else None
        if row is None:
            return {}
        kept = self.best or self.run.done
        return {"best/step": round(row["step"]), "best/loss": row["loss"], "kept/step": kept, "steps": self.run.done}

    def _look(self, names: Sequence[str]) -> None:
        kept = self.often and self.config.keep == "best"
        told = {name: SIGNS[name].told(self.run, self.limits, best_kept=kept) for name in names}
        standing = {str(w["sign"]) for w in self.warnings if w["gone"] is None} - told.keys()
        standing |= {name for name, said in told.items() if said}
        if "no_learning" in told and standing.intersection(TOO_FAST):  # of which the contrary is no remedy
            told["no_learning"] = None
        self.tell(max(self.run.done - 1, 0), told)


def pair_figures(scores: Iterable[float]) -> dict[str, float]:
    """Loss (-log sigmoid of what chosen is above rejected) and accuracy of scores in which pairs are neighbours."""
    each = iter(map(float, scores))
    gaps = [chosen - rejected for chosen, rejected in zip(each, each, strict=True)]
    losses = [math.log1p(math.exp(-abs(gap))) + max(-gap, 0.0) for gap in gaps]
    return {"loss": fmean(losses), "accuracy": fmean(gap > 0 for gap in gaps)}


UNTRAINED = {"loss": math.log(2), "accuracy": 0.5}
"""What `pair_figures` finds where both scores are equal, as before the first step."""
