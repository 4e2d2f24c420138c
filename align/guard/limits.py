"""What the guard of supervised stages warns of: the thresholds of each kind of stage."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat

from align.recipe import Runtime, Settings


class Limits(Settings):
    """The guard of supervised training"""

    signs: ClassVar[tuple[str, ...]] = ("no_learning", "diverged", "held_out", "spike", "clipped")

    no_learning: float = Field(default=0.01, gt=0.0, lt=1.0)
    """Warn where the held-out loss has fallen by less than this share of what it was; of pairs also where they are
    ordered by chance."""
    diverged: PositiveFloat = 0.2
    """Warn where the loss over the last quarter of the steps is above that of the first step by more than this
    share."""
    held_out: PositiveFloat = 0.05
    """Warn where the held-out loss is above its lowest by more than this share."""
    spike: PositiveFloat = 10.0
    """Warn where a step's loss is so many standard deviations above the mean of the 20 before it, and more than half as
    much again."""
    clipped: PositiveFloat = 20.0
    """Warn where over the last half of the steps the gradient was typically this many times max_grad_norm."""
    stop: Annotated[list[Literal["no_learning", "diverged", "held_out", "spike", "clipped"]], Runtime] = Field(
        default_factory=list
    )
    """Signs that end the run, by the names above; the last checkpoint is kept. Without influence on a result."""


class PairLimits(Limits):
    """The guard of training on pairs"""

    signs = (*Limits.signs, "overfitting")

    held_out: PositiveFloat = 0.2
    """Warn where the held-out loss is above its lowest by more than this share."""
    overfitting: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Warn where accuracy in training is above that on held-out pairs by more than this, and by more than chance
    explains."""
    stop: Annotated[
        list[Literal["no_learning", "diverged", "held_out", "spike", "clipped", "overfitting"]], Runtime
    ] = Field(  # type: ignore[assignment]
        default_factory=list
    )
    """Signs that end the run, by the names above; the last checkpoint is kept. Without influence on a result."""


class PolicyLimits(PairLimits):
    """The guard of preference optimisation"""

    signs = (*PairLimits.signs, "chosen")

    chosen: PositiveFloat = 0.5
    """Warn where chosen answers have lost more than this many nats per token."""
    stop: Annotated[
        list[Literal["no_learning", "diverged", "held_out", "spike", "clipped", "overfitting", "chosen"]], Runtime
    ] = Field(  # type: ignore[assignment]
        default_factory=list
    )
    """Signs that end the run, by the names above; the last checkpoint is kept. Without influence on a result."""
