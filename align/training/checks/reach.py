"""Whether training reaches what it is to train: every trainable tensor gets a gradient at the start, or the run stops
there.

A factor that the computation leaves out (a head that is not computed through, a projection that a layer does not use)
would otherwise be committed as if it had been trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import Tensor

from align.ground.errors import AlignError, NotTrained
from align.ground.terminal import say
from align.packed.token_rows import DELTA

EXPERT = ".experts."
"""In the names of tensors that transformers runs only for the tokens that a router sends there."""


PATIENCE = 3
"""Steps in which a gradient may be all zeros: LoRA's A has none before B has moved, nor B under a score head of zeros
before that has."""


VISIBLE = 2**-10
"""A step counts where it changes a number this large a share of the largest trained one: of fp32 that is a 2**-34 of
the latter, far below what a forward shows."""
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class StartState(TypedDict):
    """What a checkpoint keeps of `Start`."""

    scale: float
    sums: dict[str, int]


class ReachState(TypedDict):
    """What a checkpoint keeps of `Reach`; names of tensors as lists."""

    moved: bool
    looks: int
    idle: list[str]
    zero: list[str]


class Start:
    """What trained tensors were before the first step, as sums of their bits, so that no copy is kept."""

    def __init__(self, trainable: Mapping[str, Tensor]):
        self.trainable = trainable
        self.scale = VISIBLE * max((t.detach().abs().max().item() for t in trainable.values()), default=0.0)
        self.sums = self._sums()

    def _sums(self) -> dict[str, int]:
        """Each number beside `scale`, so that what is lost there is no change: a zero of LoRA's B would show any step
        at all."""
        shown = ((name, tensor.detach() + self.scale) for name, tensor in self.trainable.items())
        return {name: int(tensor.view(BITS[tensor.element_size()]).sum(dtype=torch.int64)) for name, tensor in shown}

    def end(self, title: str, learning_rate: float) -> None:
        """After the last step. Raises: NotTrained where no tensor is another one."""
        if self.sums == self._sums():
            raise NotTrained(
                f"{title}: no trained tensor changed by as much as a forward could show, so nothing was trained, and "
                f"nothing is committed. learning_rate is {learning_rate:g}: raise it."
            )

    def state_dict(self) -> StartState:
        return {"scale": self.scale, "sums": self.sums}

    def load_state_dict(self, state: StartState) -> None:
        self.scale, self.sums = state["scale"], state["sums"]


class Reach:
    """Looks at gradients after each backward pass until every tensor had one.

    Args:
        may_be_idle: in some steps the loss does not reach every tensor, so a missing gradient is told only after the
            last.
        may_be_zero: a step may say nothing of a tensor (equal rewards in reinforcement learning), so zeros are no
            reason to stop.
    """

    def __init__(self, trainable: Mapping[str, Tensor], *, may_be_idle: bool = False, may_be_zero: bool = False):
        self.trainable = trainable
        self.idle, self.zero = set(trainable), set(trainable)
        self.may_be_idle, self.may_be_zero = may_be_idle, may_be_zero
        self.moved, self.looks = False, 0

    def look(self) -> None:
        """After a backward pass. Raises: AlignError naming a tensor that it did not reach."""
        if not self.zero:
            return
        self.looks += 1
        gradients = {name: self.trainable[name].grad for name in self.zero}
        self.idle -= {name for name, gradient in gradients.items() if gradient is not None}
        moving = {name for name, gradient in gradients.items() if gradient is not None and bool(gradient.any())}
        self.zero, self.moved = self.zero - moving, self.moved or bool(moving)
        _refuse(set() if self.may_be_idle else self.idle)
        if self.looks >= PATIENCE and not (self.may_be_zero or self.may_be_idle):
            _refuse({name for name in self.zero if DELTA not in name})  # a token may be in none of these steps

    def end(self, title: str, figures: Mapping[str, float] | None = None) -> None:
        """After the last step, of which `figures` were logged. Raises: NotTrained where nothing was trained,
        AlignError where a tensor was never reached."""
        if not self.moved:
            why = "All answers to a prompt got the same reward, or the records leave nothing to learn: look at both."
            why = unscored(figures or {}) or why
            raise NotTrained(
                f"{title}: every gradient of the run was zero, so nothing was trained, and nothing is committed. {why}"
            )
        _refuse(self.idle)
        if self.idle:
            say(
                f"{title}: {len(self.idle)} tensors of experts got no gradient, as no token was sent there; they are "
                "as they were"
            )

    def state_dict(self) -> ReachState:
        return {"moved": self.moved, "looks": self.looks, "idle": sorted(self.idle), "zero": sorted(self.zero)}

    def load_state_dict(self, state: ReachState) -> None:
        self.moved, self.looks = state["moved"], state["looks"]
        self.idle, self.zero = set(state["idle"]), set(state["zero"])


def _refuse(names: set[str]) -> None:
    lost = sorted(name for name in names if EXPERT not in name)
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise AlignError(
            f"{lost[0]}{more} is to be trained but gets no gradient: this model does not compute through it, or not in "
            "a way that can be trained. Leave its layer out of adapter.targets."
        )


def unscored(figures: Mapping[str, float]) -> str:
    """Why a run whose answers got no score learnt nothing; empty where they got one."""
    share = figures.get("unscored", 0.0)
    if not share:
        return ""
    return (
        f"{share:.0%} of the last rollout's answers got no score (None), and fewer than two scores that differ teach "
        "nothing: look at what the judge gives None for."
    )
