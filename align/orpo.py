"""Odds ratio preference optimisation: fine-tuning and preference in one, no reference.  `python -m align.orpo --base
MODEL --data pairs.jsonl --name my-orpo`

Loss: ORPO, Hong et al. 2024 (arXiv 2403.07691), eq. 6 and 7: next-token loss of the chosen completions, a mean over
their tokens in the step, less beta x log sigmoid of the log odds ratio of chosen to rejected, by mean log-probs per
token. Held-out pairs are measured by that log sigmoid without beta, which is its weight beside the other part. It
starts from a base, or from any parent. As elsewhere in Align, the prompt's own tokens are not learnt; TRL's trainer
counts them in the next-token part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

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
    """Settings of ORPO."""

    beta: PositiveFloat = 0.1
    """Weight of the odds ratio beside the next-token loss (the paper's lambda, 0.1 there)."""


def loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    logprobs = roles.logprobs("policy", batch)
    per_token = batch.per_sequence(logprobs) / batch.lengths.clamp(min=1)
    return losses.loss.combine(
        losses.reference_free.chosen_tokens(logprobs, batch, 1.0),
        losses.reference_free.odds_ratio(per_token, config.beta),
        losses.preference.rewards(config.beta * per_token),
    )


def run(config: Config, store: Store) -> Artifact:
    """Train on preference pairs without a reference; an `adapter` artifact."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config = bench.config
    return setup.train_on_pairs(
        bench,
        lambda r, b: loss(r, b, config),
        lambda logprob, n: losses.reference_free.log_odds(logprob / n),
        reference=False,
    )


STAGE = setup.without_reference(
    "orpo",
    version=2,
    config=Config,
    work=train,
    does="odds ratio preference optimisation on preference pairs, without a reference",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
