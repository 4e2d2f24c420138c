"""How many optimizer steps a run takes, and which prompts: the same before it, in its plan and in its rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Lengths(Protocol):
    """The settings of reinforcement learning that say how long it takes."""

    @property
    def rollout_size(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def epochs(self) -> float: ...
    @property
    def max_steps(self) -> int | None: ...


FEW = 10
"""Optimizer steps below which little is learnt at the usual learning rates."""


def few(steps: int, max_steps: int | None) -> str:
    """What is said of a run of so few steps; nothing where it is long enough, or they were asked for."""
    return "; that is few to learn from: raise epochs, or lower batch_size" if max_steps is None and steps < FEW else ""


def per_epoch(examples: int, batch_size: int) -> int:
    """Steps of one pass over so many examples; the last may be smaller."""
    return -(-examples // batch_size)


def supervised(examples: int, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a stage that learns from examples."""
    return max_steps if max_steps is not None else max(1, round(per_epoch(examples, batch_size) * epochs))


def reinforced(prompts: int, config: Lengths, passes: int, group_size: int) -> tuple[int, int, int]:
    """(optimizer steps, rollouts, steps of each rollout) of a stage of reinforcement learning that passes over each
    rollout so often."""
    each = passes * (config.rollout_size // config.batch_size)
    wanted = max(1, round(prompts * config.epochs / (config.rollout_size // group_size)))
    steps = wanted * each if config.max_steps is None else config.max_steps
    return steps, -(-steps // each), each


def in_seeded_passes(places: Sequence[int], n: int, seed: int) -> list[int]:
    """What stands at `places` of seeded passes over `n` things, one pass after the other."""
    import numpy as np  # which takes 0.1 s, and steps are counted without it

    out: list[int] = []
    for k in places:
        lap, place = divmod(k, n)
        if not out or place == 0:
            order = np.random.default_rng([seed, lap]).permutation(n)
        out.append(int(order[place]))
    return out
