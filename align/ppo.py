"""Proximal policy optimisation with four roles on one base.

`python -m align.ppo --parent my-sft --reward my-reward --data prompts.jsonl --name my-ppo`

Schulman et al. 2017 (arXiv 1707.06347) for language models (Ziegler et al. 2019, arXiv 1909.08593; Ouyang et al. 2022, arXiv 2203.02155),
with the details of "The N+ implementation details of RLHF with PPO" (Huang et al. 2024, arXiv 2403.17031), named where they stand below.
Policy, reference, reward and value are adapters and heads on the one base; the value role starts as a copy of the first reward role
(detail 5 there), or, where only judges reward, as a copy of the parent with a head of zeros. Left out: a value head on the policy's trunk,
top-k or top-p sampling (the policy's own distribution is sampled).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from align import core, rl
from align.stage import Job, Outcome, Stage, cost_record, execute, main, write_history
from align.store import Artifact, Store

if TYPE_CHECKING:
    from torch import Tensor

    from align.core.experience import Advantages, Rollout
    from align.core.losses import Loss
    from align.core.pack import Batch
    from align.core.roles import Roles


class Config(rl.RLConfig):
    """Settings of PPO"""

    ppo_epochs: PositiveInt = 4
    """Passes over each rollout, batch_size samples at a time."""
    clip: PositiveFloat = 0.2
    """Policy ratio is clipped to 1 +- clip."""
    value_clip: PositiveFloat = 0.2
    """Values move at most this far from the rollout's before their loss is clipped."""
    value_coef: NonNegativeFloat = 0.1
    """Weight of the value loss."""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Discount; 1 because the reward comes at the end."""
    gae_lambda: float = Field(default=0.95, ge=0.0, le=1.0)
    """GAE's lambda (Schulman et al. 2016, arXiv 1506.02438, eq. 16)."""
    whiten_rewards: bool = False
    """Divide rewards by their standard deviation over the rollout, mean kept."""
    head_learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of the value head."""


def values(roles: Roles, batch: Batch) -> dict[str, Tensor]:
    """What is measured of every sample beside log-probs."""
    return {"old_values": roles.values("value", batch)}


def advantages(rollout: Rollout, config: Config) -> Advantages:
    """Rewards per token less the price of KL, GAE over them, and whitening over the whole rollout (N+ details, 3.8)."""
    rewards = core.advantages.rewards_per_token(rollout.scores, rollout.kl, config.kl_coef)
    if config.whiten_rewards:
        rewards = core.advantages.scaled(rewards)
    old_values = rollout.columns["old_values"]
    gains = [core.advantages.gae(r, v, config.gamma, config.gae_lambda) for r, v in zip(rewards, old_values, strict=True)]
    returns = [g + v for g, v in zip(gains, old_values, strict=True)]
    return core.experience.Advantages(
        {"advantages": core.advantages.whitened(gains), "old_values": old_values, "returns": returns},
        {"value/explained_variance": core.advantages.explained_variance(old_values, returns)},
    )


def loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    columns, mask = batch.columns, batch.loss_mask
    policy = core.losses.ppo_policy(
        roles.logprobs("policy", batch, config.temperature), columns["old_logprobs"], columns["advantages"], mask, config.clip
    )
    value = core.losses.ppo_value(
        roles.values("value", batch), columns["old_values"], columns["returns"], mask, config.value_clip, config.value_coef
    )
    return core.losses.combine(policy, value)


def run(config: Config, store: Store) -> Artifact:
    """Improve the parent by its rewards on prompts; an `adapter` artifact that also holds the value role."""
    return execute(STAGE, config, store)


def train(job: Job) -> Outcome:
    config = job.config
    setup = rl.set_up(job)
    roles, renderer = setup.roles, setup.renderer
    add_value(job, roles)
    job.add_policy(roles)
    roles.train_only("policy", *roles.adapters["value"], heads=["value"])
    source = setup.rollouts(lambda r: advantages(r, config), config.ppo_epochs, measure=values)
    history, cost = setup.fit(lambda r, b: loss(r, b, config), source)
    job.save_role(roles, "policy", job.folder)
    job.save_role(roles, "value", job.folder / "value")
    renderer.save(job.folder / "tokenizer")
    write_history(job.folder, history)
    check = job.reload_check(roles, renderer, policy="", value="value")
    metrics = rl.summary(history, "value/explained_variance")
    return Outcome(job.folder, "adapter", renderer.contract(), metrics, check, cost_record(cost))


def add_value(job: Job, roles: Roles) -> None:
    """Role "value": a copy of the first reward model, else of the parent (or a fresh adapter) with a head of zeros."""
    first = next(iter(rl.reward_artifacts(job).values()), None)
    if first is not None:
        job.add_role(roles, "value", job.store.folder(first))
        return
    parent = job.parents.get("parent")
    if parent is not None and parent.kind != "model":
        job.add_role(roles, "value", job.store.folder(parent))
    else:
        lora = job.config.lora
        roles.add_adapter("value_0", core.roles.lora_config(lora.rank, lora.alpha, lora.targets, lora.dropout, roles.base, lora.layers))
        roles.assign("value", ["value_0"])
    head = core.roles.ScoreHead(roles.base.config.get_text_config().hidden_size)
    roles.assign("value", roles.adapters["value"], head)


STAGE = Stage("ppo", 2, Config, rl.INPUTS, train)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
