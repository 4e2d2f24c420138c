"""REINFORCE++: PPO's clipped loss and price of KL without a value role; advantages are normalised over the whole
rollout.

`python -m align.reinforce_pp --parent my-sft --reward my-reward --data prompts.jsonl --name my-rpp`

Hu et al. 2025 (arXiv 2501.03262). A token's reward is the price of its KL, the last token's also the score; its
advantage is the sum of the rewards from it on, with no discount, normalised by mean and standard deviation over all
tokens of the rollout:

    A_t = r - kl_coef x sum over s >= t of (log p(y_s) - log p_ref(y_s)),    A_t <- (A_t - mean(A)) / std(A).

The loss is PPO's (arXiv 1707.06347, eq. 7), its mean over tokens. `group_size` above 1 answers each prompt several
times, which shares the prompt's computation and changes nothing else, but with `baseline: group`, the paper's second
variant (REINFORCE++-baseline): the group's mean score is taken off, KL is a term of the loss,

    A_i = r_i - mean(r of the group), at each token of answer i, then normalised as above,
    loss + kl_coef x mean of (log p(y_t) - log p_ref(y_t))^2 / 2    (k2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat

from align import losses, rl
from align.recipe import Count
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


class Config(settings.RewardKLConfig):
    """Settings of REINFORCE++"""

    group_size: Count = 1
    """Answers to each prompt; rollout_size and batch_size count answers, so they are multiples of it."""
    rollout_epochs: Count = 1
    """Passes over each rollout."""
    clip: PositiveFloat = 0.2
    """Policy ratio is clipped to 1 +- clip."""
    baseline: Literal["rollout", "group"] = "rollout"
    """What answers are held against: the mean over the rollout, or before that the mean of all answers to the prompt
    (group), where KL is a term of the loss."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found = super().conflicts(given)
        if given.get("baseline") == "group" and given.get("group_size") == 1:
            found.append("baseline is group, but group_size is 1, so that every answer is its own. Set group_size: 4.")
        return found

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if self.baseline == "group":
            found["kl_estimator"] = "baseline is group, where KL is a term of the loss, by k2. Leave it out."
        return found


def advantages(rollout: Rollout, config: Config) -> Advantages:
    """Rewards from each token on, or what an answer's score is above its group's mean, normalised over all answers of
    the rollout that have a score."""
    if config.baseline == "group":
        rollout = rl.advantages.above_group(rollout)
    return rl.advantages.of_scored(rollout, lambda scored: normalised(scored, config))


def normalised(rollout: Rollout, config: Config) -> Advantages:
    """Of samples whose scores are what is above the group's mean, where that is the baseline."""
    if config.baseline == "group":
        whitened = rl.advantages.whitened(rl.advantages.spread(rollout.scores, rollout.kl))
        return rl.advantages.Advantages({"advantages": whitened, "ref_logprobs": rollout.columns["ref_logprobs"]})
    rewards = rl.advantages.rewards_per_token(rollout.scores, rollout.price_of_kl(config.kl_estimator))
    return rl.advantages.Advantages({"advantages": rl.advantages.whitened(rl.advantages.rewards_to_go(rewards))})


def loss(roles: Roles, batch: Batch, config: Config, kl_coef: float) -> Loss:
    """`kl_coef` is the weight of KL in this rollout, which kl_target may have moved."""
    columns = batch.columns
    _, logprobs, bonus = setup.policy_logprobs(roles, batch, config)
    policy = losses.policy.ppo_policy(logprobs, columns["old_logprobs"], columns["advantages"], batch.rows, config.clip)
    if config.baseline == "rollout" or not kl_coef:
        return losses.loss.combine(policy, bonus)
    return losses.loss.combine(
        policy, bonus, losses.policy.k2_penalty(logprobs, columns["ref_logprobs"], batch.rows, kl_coef)
    )


def run(config: Config, store: Store) -> Artifact:
    """Improve the parent by its rewards on prompts; an `adapter` artifact."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    return setup.train_in_groups(bench, advantages, lambda r, b, source: loss(r, b, bench.config, source.kl.coef))


STAGE = setup.reinforced(
    "reinforce_pp",
    version=4,
    config=Config,
    work=train,
    does="REINFORCE++",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
