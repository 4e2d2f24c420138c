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
2507.18071): `ratio: sequence`. LUSPO (Liu et al. 2026, arXiv 2602.05261): the same and `normalise: sum`. The paper's
iterated reference (algorithm 1) is `ref_model_sync_steps`. What else may stand in the place of the clipped surrogate is
`loss` (CISPO, SAPO, VESPO, GMPO: align/losses/grpo.py). The group's answers share their prompt, which is computed once.
Left out: rewards of steps.
"""

from __future__ import annotations

import math
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
    from torch import Tensor

    from align.losses.grpo import Actions
    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch
    from align.rl.advantages import Advantages, Rollout


CLIPS = frozenset({"clip", "clip_high"})
READS: Mapping[str, frozenset[str]] = {
    "clip": CLIPS | {"ratio", "ratio_max"},
    "cispo": CLIPS | {"ratio"},
    "sapo": frozenset({"ratio", "sapo_temperature_pos", "sapo_temperature_neg"}),
    "vespo": frozenset({"vespo_k_pos", "vespo_k_neg", "vespo_lambda_pos", "vespo_lambda_neg"}),
    "gmpo": CLIPS,
}
"""What each loss reads of the settings that not all read."""
WHOLE = ("sequence", "sum")
"""Values of `normalise` that an answer can have which is one action."""


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
    normalise: Literal["sequence", "sum", "token", "constant"] = "sequence"
    """What a token's loss is divided by: the length of its answer (GRPO), nothing (sum: LUSPO), or max_new_tokens (Dr.
    GRPO), then the mean over answers; or, with token, the mean over tokens, so that each counts alike (DAPO)."""
    loss: Literal["clip", "cispo", "sapo", "vespo", "gmpo"] = "clip"
    """What is made of the policy ratio (papers: align/losses/grpo.py): clip, PPO's; cispo limits it as a weight, so
    that no token loses its gradient; sapo has a soft gate in the place of the clip; vespo weighs whole answers, for
    many steps to a rollout; gmpo takes the geometric mean of an answer's ratios. TRL has `normalise: token` with cispo
    and vespo."""
    clip: PositiveFloat = 0.2
    """Policy ratio is clipped to 1 - clip below, and to 1 + clip above; gmpo clips its logarithm to +- clip (0.4 in its
    paper)."""
    clip_high: PositiveFloat | None = None
    """Clip above instead of clip: DAPO's clip-higher, 0.28 there; cispo, which limits above alone, needs far more (4 in
    TRL, after arXiv 2510.13786)."""
    ratio_max: PositiveFloat | None = None
    """Largest policy ratio where the advantage is negative, above 1 + clip_high; without it there is none (two-sided
    clipping of INTELLECT-2, arXiv 2505.07291)."""
    sapo_temperature_pos: PositiveFloat = 1.0
    """How steep sapo's gate is where the advantage is positive (its paper's)."""
    sapo_temperature_neg: PositiveFloat = 1.05
    """The same where it is negative (its paper's)."""
    vespo_k_pos: PositiveFloat = 2.0
    """How vespo fades answers that became less likely, where the advantage is positive (its paper's)."""
    vespo_k_neg: PositiveFloat = 3.0
    """The same where it is negative (its paper's)."""
    vespo_lambda_pos: PositiveFloat = 3.0
    """How vespo fades answers that became more likely, where the advantage is positive (its paper's)."""
    vespo_lambda_neg: PositiveFloat = 2.0
    """The same where it is negative (its paper's)."""
    top_entropy_quantile: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of a rollout's tokens, those before which the policy is most open, that the policy's loss is taken over
    (arXiv 2506.01939, 0.2 there); KL is of all."""
    ratio: Literal["token", "sequence"] = "token"
    """Whose probability is held against the rollout's and clipped: each token's, or, as in GSPO, the whole answer's by
    its geometric mean, for which clips are far smaller (3e-4 and 4e-4 there)."""
    kl_coef: NonNegativeFloat = 0.04
    """Weight of KL from the reference, a term of the loss (the paper's beta, 0.04 there)."""
    kl_by_ratio: bool = False
    """Weigh KL by each token's policy ratio, so that its gradient is that of KL(policy || reference) (DeepSeek-V3.2,
    arXiv 2512.02556, section 3.1; TRL's default)."""
    drop_without_variance: bool = False
    """Leave groups whose answers all have the same score out of the loss (a part of DAPO's dynamic sampling)."""
    resample: FromZero = 0
    """DAPO's dynamic sampling: how often, at most, groups whose answers all have the same score are drawn anew from
    further prompts before a rollout is trained on (10 in verl's recipe); those that are left then count as ever."""

    @property
    def above(self) -> float:
        """The clip above."""
        return self.clip_high or self.clip

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found, loss = super().conflicts(given), given.get("loss", "clip")
        normalise, most = given.get("normalise", "sequence"), given.get("ratio_max")
        above = given.get("clip_high") or given.get("clip")
        pairs = (("ratio", "sequence"), ("loss", "gmpo"))
        whole = next((f"{key} is {value}" for key, value in pairs if given.get(key) == value), None)
        if whole and normalise not in WHOLE:
            found.append(
                f"{whole}, so an answer is one action, but normalise is {normalise}. Leave one of them out, or take "
                "sum, by which answers count by their length."
            )
        if loss == "clip" and isinstance(most, float) and isinstance(above, float) and most <= 1 + above:
            found.append(
                f"ratio_max ({most:g}) is not above 1 + {'clip_high' if given.get('clip_high') else 'clip'} "
                f"({1 + above:g}), to which the ratio is clipped anyway. Raise it, or leave it out."
            )
        if loss == "gmpo" and given.get("top_entropy_quantile", 1.0) != 1.0:
            found.append(
                "top_entropy_quantile leaves tokens out, but loss is gmpo, which takes an answer as a whole. Leave one "
                "of them out."
            )
        if loss == "gmpo" and str(given.get("importance")).startswith("token"):
            found.append(
                f"importance is {given['importance']}, by which tokens weigh apart, but loss is gmpo, which takes an "
                "answer as a whole. Leave one of them out, or weigh by sequence."
            )
        if loss == "vespo" and given.get("importance") is not None:
            found.append(
                "loss is vespo, which weighs an answer by how likely it has become, and importance would weigh it once "
                "more. Leave one of them out."
            )
        return found

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found, some = super().without_effect(parent), frozenset().union(*READS.values())
        found |= dict.fromkeys(some - READS[self.loss], f"{self.loss} does not read it. Leave it out.")
        if self.loss == "cispo" and self.clip_high is not None:
            found["clip"] = "cispo limits the ratio above alone, and clip_high is set. Leave it out."
        if self.kl_coef == 0:
            found["kl_by_ratio"] = "kl_coef is 0, so KL has no weight. Leave it out, or set kl_coef."
        if self.one_step:
            found |= dict.fromkeys(some | {"loss"}, found["max_approx_kl"])
        return found


def advantages(rollout: Rollout, config: Config) -> Advantages:
    """Score against the group, the same for each of an answer's tokens."""
    gains = rl.advantages.group_relative(rollout.scores, rollout.group_size, config.scale_rewards)
    spread = rl.advantages.spread(gains, rollout.kl)
    if config.top_entropy_quantile < 1:
        spread = rl.advantages.at_open_tokens(spread, rollout.columns["entropy"], config.top_entropy_quantile)
    return rl.advantages.Advantages(
        {"advantages": spread, "ref_logprobs": rollout.columns["ref_logprobs"]},
        dropped=rollout.without_variance if config.drop_without_variance else None,
    )


def loss(roles: Roles, batch: Batch, config: Config, kl_coef: float) -> Loss:
    """`kl_coef` is the weight of KL in this rollout, which kl_target may have moved."""
    columns = batch.columns
    _, logprobs, bonus = setup.policy_logprobs(roles, batch, config)
    actions = taken(logprobs, batch, config)
    kind, divide = getattr(losses.grpo, config.loss), (config.normalise, config.max_new_tokens)
    policy = losses.grpo.summed(actions, kind, *divide)
    if not kl_coef:
        return losses.loss.combine(policy, bonus)
    ratio = actions.token_log_ratio.exp() if config.kl_by_ratio else 1.0
    kl = losses.policy.kl_penalty(logprobs, columns["ref_logprobs"], batch, kl_coef, *divide, ratio)
    return losses.loss.combine(policy, bonus, kl)


def taken(logprobs: Tensor, batch: Batch, config: Config) -> Actions:
    """A micro-batch's answers as losses see them."""
    return losses.grpo.Actions(
        logprobs,
        batch.columns["old_logprobs"],
        batch.columns["advantages"],
        batch,
        clip_low=config.clip,
        clip_high=config.above,
        ratio_max=config.ratio_max or math.inf,
        sapo_temperature=(config.sapo_temperature_pos, config.sapo_temperature_neg),
        vespo_k=(config.vespo_k_pos, config.vespo_k_neg),
        vespo_lambda=(config.vespo_lambda_pos, config.vespo_lambda_neg),
        of_sequences=config.ratio == "sequence" and "ratio" in READS[config.loss],
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
