"""Simple preference optimisation: pairs, no reference.  `python -m align.simpo --parent my-sft --data pairs.jsonl`

Loss: SimPO, Meng et al. 2024 (arXiv 2405.14734), eq. 6: the implicit reward is beta times a completion's mean log-prob
per token, and chosen is to be above rejected by gamma. Nothing holds the policy where it started but the length of the
run, so its paper takes low learning rates. With `alphapo_alpha` AlphaPO, Gupta et al. 2025 (arXiv 2501.03884), which
shapes that reward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeFloat, PositiveFloat

from align import losses
from align.preference import settings, setup
from align.stage.command import main
from align.stage.describe import Outcome
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store

if TYPE_CHECKING:
    from torch import Tensor

    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch


class Config(settings.PreferenceConfig):
    """Settings of SimPO."""

    beta: PositiveFloat = 2.0
    """Scale of the implicit reward, nats per token (2 to 2.5 in the paper's appendix, and up to 10 later)."""
    gamma: NonNegativeFloat = 1.0
    """By how much the chosen completion's reward is to be the higher (0.3 to 1.6 in the paper)."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of pairs assumed to be labelled the wrong way round."""
    alphapo_alpha: float = Field(default=0.0, ge=-2.0, le=2.0)
    """AlphaPO's alpha: above 0 an unlikely answer loses more reward than by its log-prob, below 0 less; 0 is SimPO."""
    sft_coef: NonNegativeFloat = 0.0
    """Weight of the chosen completions' mean next-token loss beside it, which holds them up."""


def reward(logprob: Tensor, tokens: Tensor, config: Config) -> Tensor:
    """The implicit reward of completions by their log-probs and lengths."""
    return config.beta * losses.reference_free.shaped(logprob / tokens, config.alphapo_alpha)


def loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    logprobs = roles.logprobs("policy", batch)
    rewards = reward(batch.per_sequence(logprobs), batch.lengths.clamp(min=1), config)
    parts = [
        losses.reference_free.simpo(rewards, config.gamma, config.label_smoothing),
        losses.preference.rewards(rewards),
    ]
    if config.sft_coef:
        parts.append(losses.preference.chosen_nll(logprobs, batch, config.sft_coef))
    return losses.loss.combine(*parts)


def run(config: Config, store: Store) -> Artifact:
    """Train on preference pairs without a reference; an `adapter` artifact."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config = bench.config
    return setup.train_on_pairs(
        bench, lambda r, b: loss(r, b, config), lambda logprob, n: reward(logprob, n, config), reference=False
    )


STAGE = setup.without_reference(
    "simpo", version=1, config=Config, work=train, does="SimPO on preference pairs, without a reference"
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
