"""The reward shift of BCO: the mean implicit reward of all answers so far, which is measured over each whole step
before it is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from align.data.examples import Example
from align.models.roles import Roles
from align.packed.pack import Batch
from align.training import whole_step


class RewardShift:
    """The mean of beta x log ratio over the answers of all steps so far (Jung et al. 2024, arXiv 2404.04656,
    whose mean moves with the training too)."""

    def __init__(self, beta: float, budget: int):
        self.beta, self.budget = beta, budget
        self.total, self.count = 0.0, 0

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1)

    def prepare(self, roles: Roles, examples: list[Example]) -> list[Example]:
        """The answers of a step, which are taken note of, with column `shift`."""

        def ratios(roles: Roles, batch: Batch) -> Tensor:
            return batch.per_sequence(roles.logprobs("policy", batch) - batch.columns["ref_logprobs"])

        found = whole_step.of_sequences(roles, examples, self.budget, ratios)
        self.total, self.count = self.total + self.beta * float(found.sum()), self.count + len(found)
        return self.told(examples)

    def told(self, examples: list[Example]) -> list[Example]:
        """The examples with column `shift` as it is now."""
        return whole_step.with_value(examples, "shift", torch.full((len(examples),), self.mean))

    def state_dict(self) -> Mapping[str, object]:
        return {"total": self.total, "count": self.count}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.total, self.count = cast(float, state["total"]), cast(int, state["count"])
