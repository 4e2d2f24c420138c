"""The course of a run that learns from records, and the signs that it goes wrong.

A run is seen as up to 20 stretches of equal length, by their means, so that its state stays small however long it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean, pstdev

from align.guard.limits import Limits, PairLimits, PolicyLimits
from align.guard.signs import Figures, Sign

STRETCHES = 20
BEFORE = 20
"""Steps that a step's loss is compared with."""
FEW_PAIRS = 20
"""Of fewer held-out pairs nothing is said of how they are ordered: their share is a matter of chance."""
FEW = 10
"""In a run of fewer steps nothing is said of whether it learns."""


@dataclass
class Course:
    """What was seen so far of a run of `steps` steps, `records` in each."""

    steps: int = 0
    records: int = 1
    max_grad_norm: float = 0.0
    done: int = 0
    first: float = 0.0
    """The loss of the first step."""
    stretches: list[dict[str, float]] = field(default_factory=list)
    """Means of steps, and under "steps" of how many."""
    before: list[float] = field(default_factory=list)
    """The losses of the steps before the last."""
    loss: float = 0.0
    """The loss of the last step."""
    held_out: list[dict[str, float]] = field(default_factory=list)
    """loss, for pairs accuracy, "records" and "step": how many steps were done."""

    def note(self, means: Figures) -> None:
        """One step more."""
        if self.done % max(1, self.steps // STRETCHES) == 0:
            self.stretches.append({"steps": 0.0})
        last, self.done = self.stretches[-1], self.done + 1
        n = last["steps"]
        for name, value in means.items():
            last[name] = (last.get(name, 0.0) * n + value) / (n + 1)
        last["steps"] = n + 1
        self.before = [*self.before, self.loss][-BEFORE:] if self.done > 1 else []
        self.loss = means["loss"]
        self.first = self.first if self.done > 1 else self.loss

    def mean(self, name: str, share: float) -> tuple[float, float] | None:
        """Mean of a figure over the last `share` of the steps done, and over how many steps; None where it was not
        measured."""
        total, steps = 0.0, 0.0
        for stretch in reversed(self.stretches):
            if name in stretch and steps < share * self.done:
                total, steps = total + stretch[name] * stretch["steps"], steps + stretch["steps"]
        return (total / steps, steps) if steps else None


# ---- signs: what is seen, or None ------------------------------------------------------------------------------------


def no_learning(run: Course, limits: Limits) -> str | None:
    """A held-out loss that stays, or pairs that are ordered by chance, half way and later. What gets worse is another
    sign."""
    if run.done < FEW or run.done < run.steps / 2 or diverged(run, limits) or _came_back(run, limits):
        return None
    name = next((n for n in ("accuracy", "rewards/accuracies") if n in run.stretches[-1]), None)
    if name is not None:
        accuracy, steps = run.mean(name, 0.5) or (0.0, 0.0)
        chance = 0.5 + 2 * 0.5 / math.sqrt(steps * run.records)
        if accuracy <= chance:
            return (
                f"{accuracy:.1%} of {steps * run.records:,.0f} pairs are ordered right, which chance reaches too "
                f"(limit {chance:.1%})"
            )
    if len(run.held_out) < 2:
        return None
    first, now = run.held_out[0]["loss"], run.held_out[-1]["loss"]
    if abs(now - first) > limits.no_learning * first:
        return None
    return (
        f"the loss of held-out records was {first:.4g} at the start and is {now:.4g} (limit: "
        f"{limits.no_learning:.0%} below)"
    )


def _came_back(run: Course, limits: Limits) -> bool:
    """Whether a loss was far above that of the start: a run that went astray and came back learnt too fast."""
    steps = any(stretch["loss"] > (1 + limits.diverged) * run.first for stretch in run.stretches)
    looks = [row["loss"] for row in run.held_out]
    return steps or any(loss > (1 + limits.held_out) * looks[0] for loss in looks)


def diverged(run: Course, limits: Limits) -> str | None:
    """A loss that is higher than before anything was trained."""
    now = run.mean("loss", 0.25)
    if now is None or run.done < FEW or now[0] <= (1 + limits.diverged) * run.first:
        return None
    return f"the loss is {now[0]:.4g}; in the first step it was {run.first:.4g}"


def held_out(run: Course, limits: Limits) -> str | None:
    """A model that gets worse on what it is not trained on."""
    if len(run.held_out) < 2:
        return None
    best, now, start = min(run.held_out[:-1], key=lambda row: row["loss"]), run.held_out[-1], run.held_out[0]
    above_start = now["step"] == run.steps and now["loss"] > (1 + limits.no_learning) * start["loss"]
    if now["loss"] <= (1 + limits.held_out) * best["loss"] and not above_start:
        return None
    return f"the loss of held-out records is {now['loss']:.4g}; at step {best['step']:.0f} it was {best['loss']:.4g}"


def spike(run: Course, limits: Limits) -> str | None:
    """A step whose loss is far from those before it."""
    if len(run.before) < BEFORE:
        return None
    mean, deviation = fmean(run.before), pstdev(run.before)
    if run.loss <= max(mean + limits.spike * deviation, 1.5 * mean):
        return None
    return f"the loss of this step is {run.loss:.3g}; that of the {BEFORE} before it was {mean:.3g} +- {deviation:.2g}"


def clipped(run: Course, limits: Limits) -> str | None:
    """Gradients that are nearly always cut down, and by much."""
    found = run.mean("grad_norm", 0.5)
    if not run.max_grad_norm or found is None or run.done < FEW or run.done < run.steps / 2:
        return None
    times = found[0] / run.max_grad_norm
    if times <= limits.clipped:
        return None
    return f"the gradient's norm is {found[0]:.3g}, {times:.0f} times max_grad_norm (limit {limits.clipped:g})"


def overfitting(run: Course, limits: PairLimits) -> str | None:
    """Pairs that are known by heart: a difference of two shares, each of a sample. An observed share near 0 or 1 has a
    variance of 0.05 at least, or few pairs that all are right would seem to leave nothing to chance."""
    now = run.held_out[-1] if run.held_out else {}
    if "accuracy" not in now or now["step"] != run.done or now["records"] < FEW_PAIRS:
        return None
    name = "accuracy" if "accuracy" in run.stretches[-1] else "rewards/accuracies"
    trained, steps = run.mean(name, 0.25) or (0.0, 1.0)
    samples = ((now["accuracy"], now["records"]), (trained, steps * run.records))
    chance = 3 * math.sqrt(sum(max(share * (1 - share), 0.05) / n for share, n in samples))
    if trained - now["accuracy"] <= max(limits.overfitting, chance):
        return None
    return (
        f"{trained:.0%} of the pairs it trains on are ordered right, {now['accuracy']:.0%} of "
        f"{now['records']:.0f} held-out ones"
    )


def chosen(run: Course, limits: PolicyLimits) -> str | None:
    """Chosen answers that the model would give less and less: margins that grow because both fall, the rejected ones
    faster."""
    now = run.stretches[-1]["logps/chosen_per_token"]
    if now >= -limits.chosen:
        return None
    return f"chosen answers have lost {-now:.2f} nats per token (limit {limits.chosen:g})"


SIGNS: dict[str, Sign] = {
    "no_learning": Sign(
        no_learning,
        "learning_rate is too low or there are too few steps for this model, or the records say nothing that it could "
        "learn",
        "raise learning_rate (three times), or epochs; small models take rates of 1e-3 and more; look at some records",
    ),
    "diverged": Sign(
        diverged,
        "learning_rate is too high",
        "take a tenth of learning_rate, then look for the highest that holds; a higher warmup_ratio helps little",
    ),
    "held_out": Sign(
        held_out,
        "learning_rate is too high, or it has seen the same records too often",
        "halve learning_rate, or take fewer epochs (max_steps: where it was lowest)",
        "no fewer steps, as the weights of the best look are kept (keep: best); for a lower loss than that, halve "
        "learning_rate or bring more records",
    ),
    "spike": Sign(
        spike,
        "learning_rate is too high, or this step holds records unlike the others",
        "halve learning_rate or raise warmup_ratio; look for broken rows in the data",
    ),
    "clipped": Sign(
        clipped,
        "losses are on a large scale, as with a large beta or margins, or learning_rate has made the model unstable",
        "halve learning_rate; where the loss falls well all the same, raise max_grad_norm or this limit",
    ),
    "overfitting": Sign(
        overfitting,
        "more passes over the pairs than they carry, or too large an adapter",
        "take fewer epochs, a lower learning_rate or adapter.rank, or more pairs",
        "no fewer epochs, as the weights of the best look are kept (keep: best); for better ones, take a lower "
        "learning_rate or adapter.rank, or more pairs",
    ),
    "chosen": Sign(
        chosen,
        "learning_rate is too high or beta too low: margins grow by making both answers unlikely, and with them good "
        "text",
        "halve learning_rate, raise beta, or set sft_coef (0.1 to 1), which holds chosen answers up; train for fewer "
        "steps",
        "halve learning_rate, raise beta, or set sft_coef (0.1 to 1), which holds chosen answers up",
    ),
}
