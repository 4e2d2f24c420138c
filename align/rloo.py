"""REINFORCE leave-one-out: an answer is one action, and the other answers to its prompt are its baseline; no value
role.

`python -m align.rloo --parent my-sft --reward my-reward --data prompts.jsonl --name my-rloo`

Ahmadian et al. 2024 (arXiv 2402.14740; Kool et al. 2019). The return of an answer is its score less the price of KL
(eq. 3),

    R_i = r_i - kl_coef (log p(y_i) - log p_ref(y_i)),    A_i = R_i - mean of R_j over j != i    (section 3.3),

and the loss is -A_i x the log-prob of the whole answer, by way of its ratio to the rollout's, rho_i = p(y_i) /
p_old(y_i):

    -min(rho_i A_i, clip(rho_i, 1 - clip, 1 + clip) A_i).

In the first step of a rollout rho = 1 and the gradient is REINFORCE's; the clip, which the paper has no use for as it
takes one step per rollout, guards the later ones (as in TRL). Left out: scaling of rewards or advantages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

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


class Config(settings.RewardKLConfig):
    """Settings of RLOO"""

    group_size: int = Field(default=4, ge=2)
    """Answers to each prompt (the paper's k, 2 and 4 there); rollout_size and batch_size count answers, so they are
    multiples of it."""
    rollout_epochs: Count = 1
    """Passes over each rollout."""
    clip: PositiveFloat = 0.2
    """The ratio of a whole answer's probability is clipped to 1 +- clip."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found, importance = super().conflicts(given), str(given.get("importance"))
        if importance.startswith("token"):
            whole = importance.replace("token", "sequence")
            found.append(f"importance is {importance}, but here a whole answer is one action. Take {whole}.")
        return found


def advantages(rollout: Rollout, config: Config) -> Advantages:
    """Return against the others of the group, noted at each of an answer's tokens."""
    returns = rollout.scores - rl.advantages.per_sample(rollout.price_of_kl(config.kl_estimator))
    gains = rl.advantages.leave_one_out(returns, rollout.group_size)
    return rl.advantages.Advantages({"advantages": rl.advantages.spread(gains, rollout.kl)})


def loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    columns = batch.columns
    _, logprobs, bonus = setup.policy_logprobs(roles, batch, config)
    return losses.loss.combine(
        losses.policy.rloo(logprobs, columns["old_logprobs"], columns["advantages"], batch, config.clip), bonus
    )


def run(config: Config, store: Store) -> Artifact:
    """Improve the parent by its rewards on prompts; an `adapter` artifact."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    return setup.train_in_groups(bench, advantages, lambda r, b, source: loss(r, b, bench.config))


STAGE = setup.reinforced(
    "rloo",
    version=4,
    config=Config,
    work=train,
    does="REINFORCE leave-one-out",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
