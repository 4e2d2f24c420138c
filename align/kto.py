"""Kahneman-Tversky optimisation: answers called good or bad, no pairs.  `python -m align.kto --parent my-sft --data
labels.jsonl --name my-kto`

Rows are a prompt, a completion and a label, true or false. Loss: KTO, Ethayarajh et al. 2024 (arXiv 2402.01306), eq. 7,
against the parent as reference. The KL that rewards are measured from is estimated before each optimizer step on
answers to other prompts of that step, over all its micro-batches and processes (TRL: over each of them apart). BCO
is a stage of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveFloat

from align import losses, preference
from align.guard import limits
from align.preference import labelled
from align.recipe import TrainConfig
from align.stage.command import main
from align.stage.describe import Outcome
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store

if TYPE_CHECKING:
    from align.data.examples import Example
    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch


class Config(TrainConfig):
    """Settings of Kahneman-Tversky optimisation."""

    may_start_off: ClassVar[bool] = False

    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """KTO's own, or APO-zero of single answers (arXiv 2408.06266), which measures rewards from 0 and needs no KL."""
    beta: PositiveFloat = 0.1
    """Inverse temperature of the implicit reward; larger stays closer to the reference (0.1 in the paper)."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of good answers; weighted, there should be 1 to 1.33 times as many as bad ones (eq. 8)."""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of bad answers."""
    learning_rate: PositiveFloat = 5e-5
    """Peak learning rate; ten times the 5e-6 of the paper's full fine-tuning, as LoRA wants."""
    guard: limits.Limits = limits.Limits()

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found = super().conflicts(given)
        if given.get("loss", "kto") == "kto" and given.get("batch_size") == 1:
            found.append("batch_size is 1, but KL is estimated on answers to other prompts of a step. Take more.")
        return found


def loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    ratios = batch.per_sequence(roles.logprobs("policy", batch) - batch.columns["ref_logprobs"])
    told = {name: column[batch.ends - 1] for name, column in batch.columns.items() if name in ("good", "kl")}
    kl = told.get("kl", 0.0 * told["good"])
    weights = (config.desirable_weight, config.undesirable_weight)
    return losses.unpaired.kto(ratios, told["good"] > 0, kl, config.beta, weights)


def run(config: Config, store: Store) -> Artifact:
    """Train on answers called good or bad against the parent as reference; an `adapter` artifact."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config = bench.config

    def with_kl(roles: Roles, examples: list[Example]) -> list[Example]:
        return preference.policy.with_kl(roles, examples, config.tokens_per_microbatch, bench.context)

    fill = with_kl if config.loss == "kto" else None
    return labelled.train_on_labelled(bench, lambda r, b: loss(r, b, config), prepare=fill, measured=fill)


STAGE = labelled.on_labelled("kto", version=1, config=Config, work=train, does="Kahneman-Tversky optimisation")

if __name__ == "__main__":
    main(STAGE, run, __doc__)
