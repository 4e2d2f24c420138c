"""beta-DPO: beta is another one in each step, by how far apart its pairs are.

Wu et al. 2024 (arXiv 2407.08639) section 4.2: beta_step = (1 + alpha (E[M] - M_0)) beta, where M are the step's
implicit reward margins at beta and M_0 is their running mean over the steps before, of which each new one takes
1 - momentum. Left out: filtering pairs by their margins (section 4.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from torch import Tensor

from align.data.examples import Example
from align.models.roles import Roles
from align.packed.pack import Batch
from align.training import whole_step

LEAST = 0.01
"""Of beta, at least: at 0 nothing holds the policy to the reference, and below it the loss is turned round."""


class DynamicBeta:
    """beta of each step, and what is remembered of the steps before."""

    def __init__(self, beta: float, alpha: float, momentum: float):
        self.beta, self.alpha, self.momentum = beta, alpha, momentum
        self.threshold = 0.0  # M_0, which is what margins are before the first step

    def next(self, margins: Tensor) -> float:
        """beta of a step with these `margins (P)`, which then count for those after it."""
        mean = float(margins.mean())
        found = self.beta * max(LEAST, 1 + self.alpha * (mean - self.threshold))
        self.threshold = self.momentum * self.threshold + (1 - self.momentum) * mean
        return found

    def fill(
        self, roles: Roles, examples: list[Example], budget: int, per_sequence: Callable[[Tensor, Batch], Tensor]
    ) -> list[Example]:
        """The pairs of a step with column `beta`; `per_sequence` sums log-probs as the loss does."""

        def ratios(roles: Roles, batch: Batch) -> Tensor:
            ref = per_sequence(batch.columns["ref_logprobs"], batch)
            return per_sequence(roles.logprobs("policy", batch), batch) - ref

        found = whole_step.of_sequences(roles, examples, budget, ratios)
        beta = self.next(self.beta * (found[0::2] - found[1::2]))
        return whole_step.with_value(examples, "beta", found.new_full((len(found),), beta))

    def state_dict(self) -> dict[str, float]:
        return {"threshold": self.threshold}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.threshold = cast(float, state["threshold"])
