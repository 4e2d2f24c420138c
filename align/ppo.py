"""Proximal policy optimisation with four roles on one base.

`python -m align.ppo --parent my-sft --reward my-reward --data prompts.jsonl --name my-ppo`

Schulman et al. 2017 (arXiv 1707.06347) for language models (Ziegler et al. 2019, arXiv 1909.08593; Ouyang et al. 2022,
arXiv 2203.02155), with the details of "The N+ implementation details of RLHF with PPO" (Huang et al. 2024, arXiv
2403.17031), named where they stand below. Policy, reference, reward and value are adapters and heads on the one base;
the value role starts as a copy of the first reward role that is trained on, scaled as that reward is (detail 22 there),
or, where only judges are, as a copy of the parent with a head of zeros. With `value: trunk` it is a head of zeros on
the policy's hidden states instead (shared network: core detail 13 of "The 37 implementation details of PPO"): one
forward less, but its loss moves the policy's adapter too. Left out: top-k or top-p sampling (the policy's own
distribution is sampled). docs/rl.md lists all details with their settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from align import adapters, losses, memory, rl
from align.data import steps
from align.data.formats import Records
from align.ground.errors import InputError
from align.recipe import Count, FromZero
from align.rl import settings, setup
from align.stage import mixture, on_base, outcomes
from align.stage.command import main
from align.stage.describe import Outcome
from align.stage.execute import execute
from align.stage.outcomes import cost_record, write_history
from align.stage.workbench import Workbench
from align.store import Artifact, Store

if TYPE_CHECKING:
    from torch import Tensor

    from align.losses.loss import Loss
    from align.models.heads import ScoreHead
    from align.models.roles import Roles
    from align.packed.pack import Batch
    from align.rl.advantages import Advantages, PerToken, Rollout


class Config(settings.RewardKLConfig):
    """Settings of PPO"""

    ppo_epochs: Count = 4
    """Passes over each rollout, batch_size samples at a time."""
    clip: PositiveFloat = 0.2
    """Policy ratio is clipped to 1 +- clip."""
    value_clip: PositiveFloat = 0.2
    """Values move at most this far from the rollout's before their loss is clipped."""
    value_coef: NonNegativeFloat = 0.1
    """Weight of the value loss."""
    value: Literal["adapter", "trunk"] = "adapter"
    """Where values come from: an adapter of their own, or a head on the policy's hidden states."""
    value_warmup: FromZero = 0
    """Rollouts at the start in which only the value trains, with value: trunk its head (Yuan et al. 2025, arXiv
    2503.01491)."""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Discount; 1 because the reward comes at the end."""
    gae_lambda: float = Field(default=0.95, ge=0.0, le=1.0)
    """GAE's lambda (Schulman et al. 2016, arXiv 1506.02438, eq. 16)."""
    whiten_rewards: bool = False
    """Bring rewards, the price of KL taken off, to deviation 1 over the rollout's tokens, mean kept."""
    head_learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of the value head."""


def values(roles: Roles, batch: Batch, hidden: Tensor, config: Config) -> Tensor:
    """(T,): by the value head on the policy's `hidden (N, D)` of the rows that count, or by a forward of the value
    role's own."""
    return roles.values_of("value", hidden, batch) if config.value == "trunk" else roles.values("value", batch)


def advantages(rollout: Rollout, config: Config) -> Advantages:
    """Rewards per token less the price of KL, GAE over them, and whitening, over all answers that have a score."""
    return rl.advantages.of_scored(rollout, lambda scored: estimated(scored, config))


def estimated(rollout: Rollout, config: Config) -> Advantages:
    rewards = rl.advantages.rewards_per_token(rollout.scores, rollout.price_of_kl(config.kl_estimator))
    if config.whiten_rewards:
        rewards = rl.advantages.whitened_about_mean(rewards)
    old_values = rollout.columns["old_values"]
    gains = [rl.advantages.gae(r, v, config.gamma, config.gae_lambda) for r, v in zip(rewards, old_values, strict=True)]
    returns = [g + v for g, v in zip(gains, old_values, strict=True)]
    return rl.advantages.Advantages(
        {"advantages": rl.advantages.whitened(gains), "old_values": old_values, "returns": returns},
        explained(old_values, rl.advantages.rewards_to_go(rewards, config.gamma), returns),
    )


def explained(values: PerToken, got: PerToken, returns: PerToken) -> dict[str, float]:
    """How much values foresaw of what was in fact got. Against GAE's `returns`, which hold the values themselves and
    agree with any that vary slowly, it is CleanRL's `explained_variance`, logged beside it."""
    of = rl.advantages.explained_variance
    return {"value/explained_variance": of(values, got), "value/explained_variance_gae": of(values, returns)}


def loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    hidden, policy = policy_loss(roles, batch, config)
    return losses.loss.combine(policy, value_loss(values(roles, batch, hidden, config), batch, config))


def parts(roles: Roles, batch: Batch, config: Config) -> Iterator[Loss]:
    """The same, part by part where the parts' graphs have nothing in common, so that one of them lies in memory at a
    time."""
    if config.value == "trunk":
        yield loss(roles, batch, config)
    else:
        yield policy_loss(roles, batch, config)[1]
        yield value_loss(roles.values("value", batch), batch, config)


def policy_loss(roles: Roles, batch: Batch, config: Config) -> tuple[Tensor, Loss]:
    """The policy's hidden states (N, D) of the rows that count, and its loss with the entropy bonus."""
    columns = batch.columns
    hidden, logprobs, bonus = setup.policy_logprobs(roles, batch, config)
    policy = losses.policy.ppo_policy(logprobs, columns["old_logprobs"], columns["advantages"], batch.rows, config.clip)
    return hidden, losses.loss.combine(policy, bonus)


def value_loss(found: Tensor, batch: Batch, config: Config) -> Loss:
    columns = batch.columns
    return losses.value.ppo_value(
        found, columns["old_values"], columns["returns"], batch.rows, config.value_clip, config.value_coef
    )


def warmup_loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    """The value's alone: the policy's adapter gets no gradient and stays as it is."""
    if config.value == "trunk":
        return value_loss(
            roles.values_of("value", roles.hidden_as("policy", batch, batch.rows).detach(), batch), batch, config
        )
    return value_loss(roles.values("value", batch), batch, config)


def run(config: Config, store: Store) -> Artifact:
    """Improve the parent by its rewards on prompts; an `adapter` artifact that also holds the value role."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config = bench.config
    start = setup.set_up(bench)
    roles, renderer = start.roles, start.renderer
    begin = add_value(bench, roles) if config.value == "adapter" else None
    on_base.add_policy(bench, roles)
    if config.value == "trunk":
        roles.assign("value", roles.adapters["policy"], roles.new_head())
    start.train_only("policy", *(roles.adapters["value"] if config.value == "adapter" else ()), heads=["value"])

    def measure(roles: Roles, batch: Batch, hidden: Tensor) -> dict[str, Tensor]:
        return {"old_values": values(roles, batch, hidden, config)}

    source = start.rollouts(lambda r: advantages(r, config), config.ppo_epochs, measure=measure, begin=begin)
    check_warmup(config, source.rollouts)

    def losses_now(roles: Roles, batch: Batch) -> Loss | Iterator[Loss]:
        return (warmup_loss if source.done <= config.value_warmup else parts)(roles, batch, config)

    history, cost = start.fit(losses_now, source, sometimes_idle=config.value_warmup > 0)
    outcomes.save_role(bench, roles, "policy", bench.folder)
    outcomes.save_role(bench, roles, "value", bench.folder / "value")
    renderer.save(bench.folder / "tokenizer")
    write_history(bench.folder, history)
    check = outcomes.reload_check(bench, roles, renderer, policy="", value="value")
    metrics = setup.summary(history, "value/explained_variance", "value/explained_variance_gae")
    return Outcome(bench.folder, "adapter", renderer.contract(), metrics, check, cost_record(cost))


def check_warmup(config: Config, rollouts: int) -> None:
    if config.value_warmup >= rollouts:
        raise InputError(
            f"value_warmup ({config.value_warmup}) leaves nothing of {rollouts} rollouts to train the policy in."
        )


def ready(bench: Workbench, looked: Mapping[str, Records[Any]]) -> None:
    """`setup.ready`, and a policy that trains in what the value's warm-up leaves. Raises: InputError."""
    setup.ready(bench, looked)
    if "data" in looked:  # at most so many prompts, some of which may be left out
        prompts = mixture.at_most(bench, looked["data"]) if looked["data"].parts else looked["data"].rows
        check_warmup(bench.config, steps.reinforced(prompts, bench.config, bench.config.ppo_epochs, 1)[1])


def add_value(bench: Workbench, roles: Roles) -> Callable[[Mapping[str, float], float], None] | None:
    """Role "value": a copy of the first reward model that is trained on (detail 22 of arXiv 2403.17031) with its head
    times its weight, else of the parent (or a fresh adapter) with a head of zeros.

    Returns: what normalises the head as rewards are, where they are, by the means of rewards and the deviation of their
        sum in the first rollout.
    """
    config, parent = bench.config, bench.parents.get("parent")
    for name, artifact in setup.reward_artifacts(bench).items():
        if weight := config.weights.get(name, 1.0):
            on_base.add_role(bench, roles, "value", bench.store.folder(artifact))
            rescale(roles.heads["value"], weight)
            if config.normalise_rewards is None:
                return None
            return lambda means, deviation: rescale(
                roles.heads["value"],
                1 / deviation if deviation > rl.advantages.NO_VARIANCE else 0.0,
                weight * means[name],
            )
    if parent is not None and parent.kind != "model":
        on_base.add_role(bench, roles, "value", bench.store.folder(parent))
    else:
        roles.add_adapter("value_0", adapters.methods.config_of(config.adapter, roles.base))
        roles.assign("value", ["value_0"])
    head = roles.new_head()
    roles.assign("value", roles.adapters["value"], head)
    return None


def rescale(head: ScoreHead, by: float, less: float = 0.0) -> None:
    """Have a head give (what it gives - `less`) x `by`."""
    head.weight.data *= by
    head.bias.data = (head.bias.data - less) * by


STAGE = setup.reinforced(
    "ppo",
    version=5,
    config=Config,
    work=train,
    does="proximal policy optimisation",
    phases=memory.kinds.ppo,
    ready=ready,
    encoder_decoders=False,
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
