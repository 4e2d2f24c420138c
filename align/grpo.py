"""Group relative policy optimisation: several answers to one prompt are each other's baseline; no value role.

`python -m align.grpo --parent my-sft --judges.right judge.py:score --data prompts.jsonl --name my-grpo`

DeepSeekMath (Shao et al. 2024, arXiv 2402.03300). An answer's advantage is its score within its group (section 4.1.2),

    A_i = (r_i - mean(r)) / std(r),

and the loss is the clipped surrogate less kl_coef x the k3 estimate of KL from the reference (eq. 3 and 4), for each
token:

    min(rho A, clip(rho, 1 - clip, 1 + clip) A) - kl_coef (ref / new - log(ref / new) - 1),    rho = new / old.

KL is a term of the loss as in the paper. The gradient of k3 is that of KL(reference || policy), so the optimum is not
the one of PPO and RLOO, in which the price of KL is part of the reward.

Choices of later papers are settings. Dr. GRPO (Liu et al. 2025, arXiv 2503.20783): `scale_rewards: false`, `normalise:
constant`. DAPO (Yu et al. 2025, arXiv 2503.14476): `normalise: token` (eq. 10), `clip_high: 0.28` (clip-higher, eq. 8),
`kl_coef: 0`, `overlong_buffer` (eq. 13), and dynamic sampling (eq. 11): with `resample` groups of equal scores are
drawn anew from further prompts, which count to no epoch, and with `drop_without_variance: true` those that are left
over stay out of the loss, so that a step may hold fewer than batch_size samples. GSPO (Zheng et al. 2025, arXiv
2507.18071): `ratio: sequence`. The paper's iterated reference (algorithm 1) is `ref_model_sync_steps`. The group's
answers share their prompt, which is computed once. Left out: rewards of steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from align import losses, rl
from align.recipe import Count, FromZero
from align.rl import settings, setup
from align.stage.command import main
from align.stage.describe import Outcome
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store

if TYPE_CHECKING:
    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch
    from align.rl.advantages import Advantages, Rollout


class Config(settings.RLConfig):
    """Settings of GRPO"""

    group_size: int = Field(default=8, ge=2)
    """Answers to each prompt; rollout_size and batch_size count answers, so they are multiples of it (64 in the paper,
    8 in TRL)."""
    rollout_epochs: Count = 1
    """Passes over each rollout (the paper's mu, 1 there)."""
    scale_rewards: bool = True
    """Divide advantages by the standard deviation of the group's scores; false as in Dr. GRPO, to which that is a bias
    towards prompts that are easy or hard."""
    normalise: Literal["sequence", "token", "constant"] = "sequence"
    """What a token's loss is divided by: the length of its answer (GRPO), nothing, so that each token counts alike
    (DAPO), or max_new_tokens (Dr. GRPO); then the mean over answers, or over tokens."""
    clip: PositiveFloat = 0.2
    """Policy ratio is clipped to 1 - clip below, and to 1 + clip above."""
    clip_high: PositiveFloat | None = None
    """Clip above instead of clip: DAPO's clip-higher, 0.28 there."""
    ratio: Literal["token", "sequence"] = "token"
    """Whose probability is held against the rollout's and clipped: each token's, or, as in GSPO, the whole answer's by
    its geometric mean, for which clips are far smaller (3e-4 and 4e-4 there)."""
    kl_coef: NonNegativeFloat = 0.04
    """Weight of KL from the reference, a term of the loss (the paper's beta, 0.04 there)."""
    drop_without_variance: bool = False
    """Leave groups whose answers all have the same score out of the loss (a part of DAPO's dynamic sampling)."""
    resample: FromZero = 0
    """DAPO's dynamic sampling: how often, at most, groups whose answers all have the same score are drawn anew from
    further prompts before a rollout is trained on (10 in verl's recipe); those that are left then count as ever."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found = super().conflicts(given)
        if given.get("ratio") == "sequence" and given.get("normalise", "sequence") != "sequence":
            found.append(
                f"ratio is sequence, so an answer is one action, but normalise is {given['normalise']}. Leave one of "
                "them out."
            )
        return found

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if self.one_step:
            found["ratio"] = found["clip"]
        return found


def advantages(rollout: Rollout, config: Config) -> Advantages:
    """Score against the group, the same for each of an answer's tokens."""
    gains = rl.advantages.group_relative(rollout.scores, rollout.group_size, config.scale_rewards)
    return rl.advantages.Advantages(
        {"advantages": rl.advantages.spread(gains, rollout.kl), "ref_logprobs": rollout.columns["ref_logprobs"]},
        dropped=rollout.without_variance if config.drop_without_variance else None,
    )


def loss(roles: Roles, batch: Batch, config: Config, kl_coef: float) -> Loss:
    """`kl_coef` is the weight of KL in this rollout, which kl_target may have moved."""
    columns = batch.columns
    _, logprobs, bonus = setup.policy_logprobs(roles, batch, config)
    divide = (config.normalise, config.max_new_tokens)
    policy = losses.policy.grpo_policy(
        logprobs,
        columns["old_logprobs"],
        columns["advantages"],
        batch,
        config.clip,
        config.clip_high or config.clip,
        *divide,
        of_sequences=config.ratio == "sequence",
    )
    if not kl_coef:
        return losses.loss.combine(policy, bonus)
    return losses.loss.combine(
        policy, bonus, losses.policy.kl_penalty(logprobs, columns["ref_logprobs"], batch, kl_coef, *divide)
    )


def run(config: Config, store: Store) -> Artifact:
    """Improve the parent by its rewards on prompts; an `adapter` artifact."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config = bench.config
    return setup.train_in_groups(
        bench, advantages, lambda r, b, source: loss(r, b, config, source.kl.coef), config.resample
    )


STAGE = setup.reinforced(
    "grpo",
    version=4,
    config=Config,
    work=train,
    does="group relative policy optimisation",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
