"""Binary classifier optimisation: answers called good or bad, no pairs.  `python -m align.bco --parent my-sft --data
labels.jsonl --name my-bco`

Rows are a prompt, a completion and a label, true or false. Loss: BCO, Jung et al. 2024 (arXiv 2404.04656): a
classifier of good against bad answers, whose logit is the implicit reward against the parent as reference, less the
mean reward so far (the reward shift, which is measured over each whole step before it is taken). Of pairs: dpo with
`loss: bco_pair`. Left out: underlying distribution matching (UDM), which weighs bad answers by a classifier of prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

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
    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch


class Config(TrainConfig):
    """Settings of binary classifier optimisation."""

    may_start_off: ClassVar[bool] = False

    beta: PositiveFloat = 0.1
    """Inverse temperature of the implicit reward; larger stays closer to the reference."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of good answers."""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of bad answers."""
    learning_rate: PositiveFloat = 5e-5
    """Peak learning rate; ten times the 5e-6 usual in full fine-tuning, as LoRA wants."""
    guard: limits.Limits = limits.Limits()


def loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    ratios = batch.per_sequence(roles.logprobs("policy", batch) - batch.columns["ref_logprobs"])
    good, shift = (batch.columns[name][batch.ends - 1] for name in ("good", "shift"))
    weights = (config.desirable_weight, config.undesirable_weight)
    return losses.unpaired.bco(ratios, good > 0, shift, config.beta, weights)


def run(config: Config, store: Store) -> Artifact:
    """Train on answers called good or bad against the parent as reference; an `adapter` artifact."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config = bench.config
    shift = preference.shift.RewardShift(config.beta, config.tokens_per_microbatch)
    return labelled.train_on_labelled(
        bench,
        lambda r, b: loss(r, b, config),
        prepare=shift.prepare,
        measured=lambda _, examples: shift.told(examples),
        carried=shift,
    )


STAGE = labelled.on_labelled("bco", version=1, config=Config, work=train, does="binary classifier optimisation")

if __name__ == "__main__":
    main(STAGE, run, __doc__)
