"""Proximal policy optimisation with four roles on one base.

`python -m align.ppo --parent my-sft --reward my-reward --data prompts.jsonl --name my-ppo`

Schulman et al. 2017 (arXiv 1707.06347) for language models (Ziegler et al. 2019, arXiv 1909.08593; Ouyang et al. 2022, arXiv 2203.02155),
with the details of "The N+ implementation details of RLHF with PPO" (Huang et al. 2024, arXiv 2403.17031), named where they stand below.
Policy, reference, reward and value are adapters and heads on the one base; the value role starts as a copy of the reward role (detail 5
there). Left out: a value head on the policy's trunk, several reward models, top-k or top-p sampling (the policy's own distribution is
sampled).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from align import core
from align.console import say
from align.data.formats import read_prompts
from align.errors import InputError
from align.recipe import Ref, TrainConfig
from align.stage import Job, Outcome, Stage, cost_record, execute, main, write_history
from align.store import Artifact, Store

if TYPE_CHECKING:
    from align.core.losses import Loss
    from align.core.pack import Batch
    from align.core.roles import Roles


class Config(TrainConfig):
    """Settings of PPO. `data` holds prompts; `batch_size` is samples per optimizer step; `epochs` passes over the prompts."""

    reward: Ref
    """The reward artifact; it must be on the same base as the parent."""
    kl_coef: NonNegativeFloat = 0.05
    """Price per nat of KL from the reference, taken off each token's reward (Ziegler et al. 2019, eq. 2)."""
    rollout_size: PositiveInt = 128
    """Samples per rollout; each is used ppo_epochs times, batch_size at a time."""
    ppo_epochs: PositiveInt = 4
    """Passes over each rollout."""
    max_new_tokens: PositiveInt = 64
    """Longest answer; one that does not end by then gets missing_eos_penalty."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature, applied in the log-probs as well."""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """Taken off the score of an answer without end-of-turn token (the EOS trick, N+ details, section 3.3)."""
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
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate of policy and value adapters; ten times the 1e-5 or less of full fine-tuning, as LoRA wants."""
    head_learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of the value head."""
    batch_size: PositiveInt = 32
    """Samples per optimizer step, over all ranks."""


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
    """Improve the parent by `config.reward` on prompts; an `adapter` artifact that also holds the value role."""
    return execute(STAGE, config, store)


def train(job: Job) -> Outcome:
    config = job.config
    if config.rollout_size % config.batch_size:
        raise InputError(f"rollout_size ({config.rollout_size}) must be a multiple of batch_size ({config.batch_size}).")
    renderer = job.load_renderer()
    prompts = renderer.prompts(job.read("data", read_prompts), config.max_new_tokens, job.context)
    roles = job.load_base()
    job.add_reference(roles)
    reward = job.store.folder(job.parents["reward"])
    job.add_role(roles, "reward", reward)
    job.add_role(roles, "value", reward)
    job.add_policy(roles)
    roles.train_only("policy", *roles.adapters["value"], heads=["value"])
    source = core.ppo.Rollouts(roles, prompts, renderer, config)
    rollouts = f"{source.rollouts} rollouts of {config.rollout_size} samples"
    say(f"{job.title}: {len(prompts):,} prompts, {rollouts}, {source.steps} optimizer steps")
    history, cost = core.trainer.fit(
        roles,
        lambda r, b: loss(r, b, config),
        source,
        config,
        title=job.title,
        checkpoints=job.checkpoints,
        show=("reward/mean", "kl", "eos_rate"),
    )
    first, last = history[0], history[-1]
    names = ("reward/mean", "kl", "entropy", "clip_fraction", "eos_rate", "length", "value/explained_variance")
    metrics = {"reward/first": first["reward/mean"], "reward/last": last["reward/mean"], **{n: last[n] for n in names}}
    job.save_role(roles, "policy", job.folder)
    job.save_role(roles, "value", job.folder / "value")
    renderer.save(job.folder / "tokenizer")
    write_history(job.folder, history)
    check = job.reload_check(roles, renderer, policy="", value="value")
    return Outcome(job.folder, "adapter", renderer.contract(), metrics, check, cost_record(cost))


STAGE = Stage("ppo", 2, Config, {"parent": ("adapter", "model"), "reward": ("reward",)}, train)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
