"""Before the first step the policy is its reference: the same weights, and log-probs as near as rounding brings
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from align.adapters.methods import holds, method_of
from align.data.examples import Example
from align.ground.errors import AlignError
from align.models.roles import Roles
from align.packed.batches import batches
from align.packed.rounding import FACTOR, rounding_floor

EXAMPLES = 4
"""Examples whose log-probs are compared: a wrong reference shows on every token."""
NATS = 1e-4
"""Nats per token that may always lie between two ways to compute the same."""


def added(roles: Roles, role: str) -> list[dict[str, Tensor]]:
    """What a role's adapters add to the base: per adapter that adds something its tensors and its scale; two that take
    each other off add nothing."""
    found: list[dict[str, Tensor]] = []
    for name in roles.adapters[role]:
        state, config = roles.adapter_state(name), roles.configs[name]
        method = method_of(config)
        layers = (layer for layer in roles.adapted if holds(layer, name))
        if method.adds_nothing(layers, name, state):
            continue
        mine = {**state, "scale": method.scale(config)}
        opposite = next((i for i, other in enumerate(found) if takes_off(other, mine)), None)
        if opposite is None:
            found.append(mine)
        else:
            del found[opposite]
    return found


def takes_off(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether an adapter adds what the other takes off: A, and B of the other sign."""
    return one.keys() == other.keys() and all(
        torch.equal(one[key], -other[key] if "lora_B" in key else other[key]) for key in one
    )


def same_weights(roles: Roles, role: str, other: str) -> bool:
    """Whether two roles add the same to the base, bit for bit."""
    mine, theirs = added(roles, role), added(roles, other)
    if len(mine) != len(theirs):
        return False
    pairs = zip(mine, theirs, strict=True)
    return all(x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x) for x, y in pairs)


@torch.no_grad()
def assert_starts_at_reference(
    roles: Roles, examples: Sequence[Example], budget: int, column: str = "ref_logprobs", temperature: float = 1.0
) -> None:
    """`examples` hold the reference's log-probs as `column`. In 16 bits, policy and reference may differ by what moved
    embeddings change.

    Raises: AlignError where the policy is another one, or the log-probs are not those of the reference.
    """
    if not same_weights(roles, "policy", "reference"):
        raise AlignError(
            "before the first step policy and reference differ in their adapters; they must be equal. "
            "The parent artifact and what was loaded do not match."
        )
    few = [replace(e, trunk=None) for e in sorted(examples, key=lambda e: e.tokens)[:EXAMPLES]]
    rows = [batch for _, batch in batches(few, budget, roles.base.device)]
    reference = torch.cat([batch.columns[column][batch.rows] for batch in rows])

    def policy() -> Tensor:
        return torch.cat([roles.logprobs("policy", batch, temperature)[batch.rows] for batch in rows])

    now = policy()
    apart, noise = float((now - reference.to(now.dtype)).abs().mean()), rounding_floor(roles.base, policy, now)
    if not apart <= max(NATS, FACTOR * noise):
        raise AlignError(
            f"before the first step policy and reference differ by {apart:.2g} nats per token, where rounding makes "
            f"{noise:.2g}; they must be equal. The parent artifact and what was loaded do not match."
        )
