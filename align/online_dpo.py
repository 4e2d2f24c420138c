"""Online DPO: the best of a prompt's fresh answers against the worst, by rewards, in every step.  `python -m
align.online_dpo --parent my-sft --reward my-reward --data prompts.jsonl --name my-online`

Guo et al. 2024 (arXiv 2402.04792): the policy answers each prompt (twice there), rewards or judges say which answer is
better, and the loss is DPO's (Rafailov et al. 2023, arXiv 2305.18290, eq. 7) of that pair,

    -log sigmoid(beta (log p(y+) / p_ref(y+) - log p(y-) / p_ref(y-))),

or IPO's, (the difference - 1 / (2 beta))^2 (Azar et al. 2023, arXiv 2310.12036, eq. 17), both over whole answers, as in
TRL's `OnlineDPOTrainer`. KL is held by `beta` alone. Of `group_size` answers the best and the worst are the pair, and
the others only make it wider. Prompts whose answers all have one score are left out of the loss and counted (TRL takes
the first answer as the better one there). A rollout is trained on in one step unless `rollout_size` is above
`batch_size`. Left out: beta by epochs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat

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


PRICED = ("kl_coef", "kl_target", "kl_horizon")
"""Settings of a price of KL."""


class Config(settings.RLConfig):
    """Settings of online DPO"""

    unread: ClassVar[frozenset[str]] = settings.RLConfig.unread | {*PRICED, *settings.IMPORTANCE}

    group_size: int = Field(default=2, ge=2)
    """Answers to each prompt, of which the best and the worst are a pair; rollout_size and batch_size count answers, so
    they are multiples of it."""
    rollout_size: Count = 64
    """Samples per rollout, batch_size of which are used at a time."""
    batch_size: Count = 64
    """Samples per optimizer step, over all ranks."""
    rollout_epochs: Count = 1
    """Passes over each rollout."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """DPO's loss of a pair, or IPO's."""
    beta: PositiveFloat = 0.1
    """Inverse temperature of the implicit reward; larger stays closer to the reference. IPO's tau."""

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        why = "online DPO is held to the reference by beta, and KL has no price of its own. Set beta."
        unweighed = "its pairs have no advantages to weigh. Leave it out."
        return found | dict.fromkeys(PRICED, why) | dict.fromkeys(settings.IMPORTANCE, unweighed)


def advantages(rollout: Rollout, config: Config) -> Advantages:
    """Which side of its prompt's pair an answer is: 1 the better one, -1 the worse one, 0 neither."""
    sides = rl.advantages.best_and_worst(rollout.scores, rollout.group_size)
    columns = {
        "side": rl.advantages.spread(sides, rollout.kl),
        "ref_logprobs": rollout.columns["ref_logprobs"],
    }
    return rl.advantages.Advantages(columns, dropped=rollout.without_variance)


def loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    columns = batch.columns
    _, logprobs, bonus = setup.policy_logprobs(roles, batch, config)
    pairs = losses.policy.online_dpo(
        batch.per_sequence(logprobs - columns["ref_logprobs"]),
        columns["side"][batch.ends - 1],
        config.group_size,
        config.beta,
        config.loss,
    )
    moved = losses.policy.moved(logprobs, columns["old_logprobs"], batch.rows)
    return losses.loss.combine(pairs, moved, bonus)


def run(config: Config, store: Store) -> Artifact:
    """Improve the parent by pairs of its own answers to prompts; an `adapter` artifact."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    return setup.train_in_groups(bench, advantages, lambda r, b, source: loss(r, b, bench.config))


STAGE = setup.reinforced(
    "online_dpo",
    version=1,
    config=Config,
    work=train,
    does="online DPO",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
