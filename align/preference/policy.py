"""The policy's side of preference losses: what they read of it beside its log-probs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from align.data.examples import Example
from align.losses import preference
from align.losses.loss import Loss
from align.models.roles import Roles
from align.packed import forward
from align.packed.batches import batches
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


@torch.no_grad()
def mean_loss(
    roles: Roles, examples: Sequence[Example], budget: int, loss: Callable[[Roles, Batch], Loss], term: str
) -> float:
    """A term of a loss over examples, the mean over their sequences."""
    found = [float(loss(roles, batch).terms[term][0]) for _, batch in batches(examples, budget, roles.base.device)]
    return sum(found) / sum(len(e.sequences) for e in examples)


def with_kl(roles: Roles, examples: list[Example], budget: int, longest: int) -> list[Example]:
    """The answers of a step with column `kl`: the estimate of KL(policy || reference) that KTO takes off rewards, of
    answers to other prompts of the step (arXiv 2402.01306, section 4.1), at least 0 as there; 0 where all have one
    prompt."""
    strangers = mismatched(examples, longest)

    def ratios(roles: Roles, batch: Batch) -> Tensor:
        return batch.per_sequence(roles.logprobs("policy", batch) - roles.logprobs("reference", batch))

    kl = whole_step.of_sequences(roles, strangers, budget, ratios).mean().clamp(min=0) if strangers else torch.zeros(())
    return whole_step.with_value(examples, "kl", kl.expand(len(examples)))


def mismatched(examples: list[Example], longest: int) -> list[Example]:
    """Each prompt with the answer of the example before it, or, where several have one prompt and follow each other, of
    one so many places before; those that still have their own prompt's are left out, and their ends are cut to
    `longest` tokens."""
    prompts = [tuple(e.sequences[0][: e.shared]) for e in examples]
    far = max(Counter(prompts).values())
    out = []
    for i, example in enumerate(examples):
        other = examples[i - far]
        if prompts[i] != prompts[i - far]:
            ids = [*prompts[i], *other.sequences[0][other.shared :]][:longest]
            counts = [*[False] * example.shared, *other.supervised[0][other.shared :]][:longest]
            out.append(Example((ids,), (counts,), example.shared))
    return [example for example in out if any(example.supervised[0])]
