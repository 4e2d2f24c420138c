"""Contrastive preference optimisation: pairs, no reference.  `python -m align.cpo --parent my-sft --data pairs.jsonl`

Loss: CPO, Xu et al. 2024 (arXiv 2401.08417), eq. 3: DPO's with a uniform reference; beside it the likelihood of the
chosen completions, a mean over their tokens in the step as in TRL, which holds them up. Left out: AlphaPO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from align import losses
from align.preference import settings, setup
from align.stage.command import main
from align.stage.describe import Outcome
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store

if TYPE_CHECKING:
    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch


class Config(settings.PreferenceConfig):
    """Settings of contrastive preference optimisation."""

    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """Pairwise loss of log-probs, a function of align/losses/preference.py; ipo takes means per token."""
    beta: PositiveFloat = 0.1
    """Scale of the implicit reward (0.1 in the paper)."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of pairs assumed to be labelled the wrong way round."""
    nll_coef: NonNegativeFloat = 1.0
    """Weight of the chosen completions' next-token loss (1 in the paper; CPO-SimPO takes less)."""

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if self.loss == "ipo":
            found["label_smoothing"] = "ipo does not read it. Leave it out."
        return found


def loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    logprobs = roles.logprobs("policy", batch)
    sums, lengths = batch.per_sequence(logprobs), batch.lengths
    pairs = losses.preference.Pairs(
        sums[0::2], sums[1::2], lengths[0::2], lengths[1::2], config.beta, config.label_smoothing
    )
    return losses.loss.combine(
        losses.preference.dpo(pairs, {getattr(losses.preference, config.loss): 1.0}),
        losses.preference.rewards(config.beta * sums),
        losses.reference_free.chosen_tokens(logprobs, batch, config.nll_coef),
    )


def run(config: Config, store: Store) -> Artifact:
    """Train on preference pairs without a reference; an `adapter` artifact."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config = bench.config
    return setup.train_on_pairs(
        bench, lambda r, b: loss(r, b, config), lambda logprob, n: config.beta * logprob, reference=False
    )


STAGE = setup.without_reference(
    "cpo",
    version=1,
    config=Config,
    work=train,
    does="contrastive preference optimisation on preference pairs, without a reference",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
