"""Passes of a role over examples: log-probs and scores, packed, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from align.data.examples import Example
from align.data.views import WithColumn
from align.ground.progress import Task
from align.models.roles import Roles
from align.packed.pack import Batch


@torch.no_grad()
def sequence_logprobs(
    roles: Roles, role: str, examples: Sequence[Example], budget: int, temperature: float = 1.0
) -> list[list[np.ndarray]]:
    """Per example and sequence: the log-prob of each of its branch's positions (0 where the target does not count)."""
    out: list[list[np.ndarray]] = [[] for _ in examples]
    with Task("computing log-probs", len(examples), "records") as task:
        for indices, batch in roles.batches(examples, budget):
            pieces = iter(batch.split(roles.logprobs(role, batch, temperature).float().cpu()))
            for i in indices:
                out[i] = [next(pieces).numpy() for _ in examples[i].sequences]
            task.add(len(indices))
    return out


def flat_logprobs(roles: Roles, role: str, examples: Sequence[Example], budget: int) -> np.ndarray:
    """`sequence_logprobs`, one after the other: fp32."""
    rows = [row for several in sequence_logprobs(roles, role, examples, budget) for row in several]
    return np.concatenate([np.zeros(0), *rows]).astype(np.float32)


def with_column(
    examples: Sequence[Example], name: str, flat: bytes, places: Sequence[int] | None = None
) -> Sequence[Example]:
    """The examples with a column from what `flat_logprobs` gave of those at some places, or of all."""
    values = np.frombuffer(flat, dtype=np.float32)
    return WithColumn(examples, range(len(examples)) if places is None else places, name, values)


@torch.no_grad()
def scores(roles: Roles, role: str, examples: Sequence[Example], budget: int) -> np.ndarray:
    """Reward scores of every sequence, in the order of the examples and within them."""
    return _scores(examples, roles, budget, lambda b: roles.scores(role, b), lambda e: len(e.sequences))


@torch.no_grad()
def step_scores(roles: Roles, role: str, examples: Sequence[Example], budget: int) -> np.ndarray:
    """Scores at every target that counts, such as the end of a step, in the order of the examples and within them."""
    return _scores(examples, roles, budget, lambda b: roles.scores_at(role, b), lambda e: sum(map(sum, e.supervised)))


@torch.no_grad()
def token_gaps(roles: Roles, role: str, examples: Sequence[Example], budget: int) -> np.ndarray:
    """Of each example log p(first) - log p(second) of the two tokens that its two sequences end with, equal before
    them: the difference of their logits, since the softmax's sum is one. In fp32 from the last hidden state on: logits
    in bf16 are so coarse that different texts tie."""

    def read(batch: Batch) -> torch.Tensor:
        with roles.use(role):
            hidden = roles.hidden(batch, batch.rows)  # (N, D), two rows an example
            first = torch.arange(len(hidden), device=hidden.device) // 2 * 2  # equal but for rounding
            return roles.head.logits_of(hidden[first], batch.targets[batch.rows])

    found = _scores(examples, roles, budget, read, lambda e: 2)
    return found[0::2] - found[1::2]


def _scores(
    examples: Sequence[Example],
    roles: Roles,
    budget: int,
    read: Callable[[Batch], torch.Tensor],
    count: Callable[[Example], int],
) -> np.ndarray:
    """What is read of every batch, `count` numbers an example, in their order."""
    out: list[list[float]] = [[] for _ in examples]
    with Task("scoring", len(examples), "records") as task:
        for indices, batch in roles.batches(examples, budget):
            values = iter(read(batch).float().cpu().tolist())
            for i in indices:
                out[i] = [next(values) for _ in range(count(examples[i]))]
            task.add(len(indices))
    return np.array([s for row in out for s in row])
