"""REINFORCE++: PPO's clipped loss and price of KL without a value role; advantages are normalised over the whole
rollout.

`python -m align.reinforce_pp --parent my-sft --reward my-reward --data prompts.jsonl --name my-rpp`

Hu et al. 2025 (arXiv 2501.03262). A token's reward is the price of its KL, the last token's also the score; its
advantage is the sum of the rewards from it on, with no discount, normalised by mean and standard deviation over all
tokens of the rollout:

    A_t = r - kl_coef x sum over s >= t of (log p(y_s) - log p_ref(y_s)),    A_t <- (A_t - mean(A)) / std(A).

The loss is PPO's (arXiv 1707.06347, eq. 7), its mean over tokens. `group_size` above 1 answers each prompt several
times, which shares the prompt's computation and changes nothing else. Left out: the variant with the group's mean as a
baseline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from align import losses, rl
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

    group_size: PositiveInt = 1
    """Answers to each prompt; rollout_size and batch_size count answers, so they are multiples of it."""
    rollout_epochs: PositiveInt = 1
    """Passes over each rollout."""
    clip: PositiveFloat = 0.2
    """Policy ratio is clipped to 1 +- clip."""


def advantages(rollout: Rollout, config: Config) -> Advantages:
    """Rewards from each token on, normalised over the rollout."""
    rewards = rl.advantages.rewards_per_token(rollout.scores, rollout.price_of_kl(config.kl_estimator))
    return rl.advantages.Advantages({"advantages": rl.advantages.whitened(rl.advantages.rewards_to_go(rewards))})


def loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    columns = batch.columns
    _, logprobs, bonus = setup.policy_logprobs(roles, batch, config)
    policy = losses.policy.ppo_policy(logprobs, columns["old_logprobs"], columns["advantages"], batch.rows, config.clip)
    return losses.loss.combine(policy, bonus)


def run(config: Config, store: Store) -> Artifact:
    """Improve the parent by its rewards on prompts; an `adapter` artifact."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    return setup.train_in_groups(bench, advantages, lambda r, b, source: loss(r, b, bench.config))


STAGE = setup.reinforced(
    "reinforce_pp",
    version=4,
    config=Config,
    work=train,
    does="REINFORCE++",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
