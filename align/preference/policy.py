"""The policy's side of preference losses: what they read of it beside its log-probs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from align.data.examples import Example
from align.losses import preference
from align.models.roles import Roles
from align.packed import forward
from align.packed.pack import Batch, pack
from align.training import whole_step


def logprobs_and_importance(roles: Roles, batch: Batch) -> tuple[Tensor, Tensor]:
    """The policy's log-probs (T), and WPO's weight of each pair (P), by one forward."""
    with roles.use("policy"):
        hidden = roles.hidden(batch, batch.rows)
        logprobs = forward.logprobs(hidden, roles.head, batch)
        with torch.no_grad():
            half = forward.logprobs(hidden, roles.head, batch, temperature=0.5)
    return logprobs, preference.importance(logprobs, half, batch)


def coupled(
    roles: Roles, examples: list[Example], budget: int, name: str, per_sequence: Callable[[Tensor, Batch], Tensor]
) -> list[Example]:
    """The pairs of a step with column `coupled`: what `losses.preference.coupling` finds for the loss of this name;
    `per_sequence` sums log-probs as the loss does."""

    def ratios(roles: Roles, batch: Batch) -> Tensor:
        ref = per_sequence(batch.columns["ref_logprobs"], batch)
        return per_sequence(roles.logprobs("policy", batch), batch) - ref

    found = whole_step.of_sequences(roles, examples, budget, ratios)
    whole = pack(examples)
    reference = per_sequence(whole.columns["ref_logprobs"], whole).double()
    return whole_step.with_value(examples, "coupled", preference.coupling(name, found, reference))
