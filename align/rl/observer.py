"""Who looks on while a stage of reinforcement learning runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from align.rl.server.sampler import ServedSampler
from align.sampling.rollout import Sampler


class Observer(Protocol):
    """Looks on while a run goes and changes nothing in it, but may end it with an AlignError. Its state is saved with
    the source's."""

    def rollout(self, index: int, figures: Mapping[str, float], sampler: Sampler | ServedSampler) -> None:
        """A rollout was collected and is to be trained on; the sampler holds the policy as it is now."""
        ...

    def first_step(self, means: Mapping[str, float]) -> None:
        """What the loss measured in the first step of a rollout, in which the policy is still the one that was
        measured."""
        ...

    def end(self, sampler: Sampler | ServedSampler, folder: Path) -> None:
        """The last step was taken, and the sampler holds what came out: write into the artifact's folder what is to be
        kept."""
        ...

    def metrics(self) -> dict[str, float]: ...
    def state_dict(self) -> Mapping[str, object]: ...
    def load_state_dict(self, state: Mapping[str, object]) -> None: ...
