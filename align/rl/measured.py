"""What is measured of every sample of a rollout before its first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from align.data.examples import Example
from align.models.roles import Roles
from align.packed import forward
from align.packed.batches import batches
from align.packed.pack import Batch
from align.rl.groups import attach
from align.training.checks.start import assert_starts_at_reference

if TYPE_CHECKING:
    from align.rl.settings import RLConfig

Also = Callable[[Roles, Batch, Tensor], Mapping[str, Tensor]]
"""What a stage measures itself, (T,) by name: it gets the policy's hidden states (N, D) of the rows that count."""


def nothing(roles: Roles, batch: Batch, hidden: Tensor) -> dict[str, Tensor]:
    """No measurements beside those of every stage."""
    return {}


@torch.no_grad()
def measured(
    roles: Roles, examples: Sequence[Example], n: int, config: RLConfig, also: Also = nothing
) -> dict[str, list[np.ndarray]]:
    """Per sample, `n` of each example, at the positions of its answer: policy and reference log-probs, entropies, and
    what the stage measures."""
    out: dict[str, list[np.ndarray]] = {}
    for indices, batch in batches(examples, config.tokens_per_microbatch, roles.base.device):
        with roles.use("policy"):
            hidden = roles.hidden(batch, batch.rows)
            old_logprobs, entropies = forward.logprobs_and_entropies(hidden, roles.head, batch, config.temperature)
        found = {"old_logprobs": old_logprobs, "entropy": entropies, **also(roles, batch, hidden)}
        found["ref_logprobs"] = roles.logprobs("reference", batch, config.temperature)
        samples = [i * n + j for i in indices for j in range(n)]
        masks = batch.split(batch.loss_mask.cpu())
        for name, values in found.items():
            column = out.setdefault(name, [np.empty(0)] * (n * len(examples)))
            for i, piece, mask in zip(samples, batch.split(values.float().cpu()), masks, strict=True):
                column[i] = piece[mask].numpy()
    return out


def check_start(
    roles: Roles, examples: list[Example], reference: Sequence[np.ndarray], n: int, config: RLConfig
) -> None:
    """The first rollout was drawn from the reference itself, whose log-probs of each sample are `reference`. Raises:
    AlignError."""
    whole = attach(examples, {"ref_logprobs": reference}, n)
    assert_starts_at_reference(roles, whole, config.tokens_per_microbatch, temperature=config.temperature)
