"""Settings that the stages of reinforcement learning share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat

from align.ground.errors import InputError
from align.guard.rollout_limits import RolloutLimits
from align.guard.rollout_signs import unseen
from align.judges import asked
from align.recipe import Adapter, Count, FromZero, Judges, Ref, Runtime, Sampling, Weights
from align.recipe.training import LOOKS, ReferenceConfig
from align.rl.reward_gate import check_rewards
from align.rl.server.settings import RolloutServer, served_wrongly
from align.store import Artifact

TAKEN = {"mean", "first", "last", "spread"}
"""What the figures of the sum of rewards are called, beside those of each reward."""
IMPORTANCE = ("importance", "importance_min", "importance_max")
"""Settings of weights between sampler and trainer."""


def _one(value: object) -> object:
    """A list of one artifact is that artifact, as the command line gives it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class RLConfig(Sampling, asked.AskedModel, ReferenceConfig):
    """Reinforcement learning

    `data` holds prompts, whose other keys go to the judges; `epochs` are passes over the prompts.
    """

    needs_one_of: ClassVar[Mapping[tuple[str, ...], str]] = {
        **ReferenceConfig.needs_one_of,
        ("reward", "judges", "judge_prompt"): "none of reward, judges and judge_prompt is set; give a reward artifact, "
        "Python functions (judges.NAME), what a model is asked, or several of them.",
    }
    unread: ClassVar[frozenset[str]] = frozenset({"eval_data", "eval_fraction", "watch_tokens", *LOOKS})

    reward: Annotated[Ref | list[Ref] | None, BeforeValidator(_one)] = None
    """The reward artifact, or several; on the same base as the parent."""
    judges: Judges = Field(default_factory=dict)
    """Name -> FILE.py:FUNCTION, called as TRL calls reward functions. They reward answers, beside reward artifacts or
    instead."""
    weights: Weights = Field(default_factory=dict)
    """Name -> weight in the sum of rewards, 1 where none is given. One artifact is called reward, of several each by
    the end of its ref; a model that is asked, judge_prompt. With weight 0 a reward is not trained on but watched: where
    it falls while the others rise, the guard warns of reward hacking."""
    reward_deviations: NonNegativeFloat | None = None
    """Take the reward artifacts as an ensemble: their mean less so many of their standard deviations, for each answer,
    in the place of their sum (Coste et al. 2023, arXiv 2310.02743). In a recipe `reward: [NAME]` is all runs of a stage
    that is swept over seeds."""
    normalise_rewards: Literal["rollout", "running"] | None = None
    """Bring the sum of rewards to mean 0 and deviation 1, over each rollout or over all so far."""
    reward_clip: PositiveFloat | None = None
    """Clip the sum of rewards, normalised or not, to +- this."""
    length_penalty: NonNegativeFloat = 0.0
    """Taken off the score for each token of the answer."""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """Taken off the score of an answer that did not end by itself (the EOS trick, detail 23 of arXiv 2403.17031)."""
    overlong_buffer: FromZero = 0
    """Soft punishment of long answers: over so many tokens before max_new_tokens up to 1 is taken off the score (DAPO,
    arXiv 2503.14476, eq. 13; 4,096 of 20,480 there)."""
    kl_coef: NonNegativeFloat = 0.05
    """Price per nat of KL from the reference, taken off each token's reward (Ziegler et al. 2019, eq. 2)."""
    kl_target: PositiveFloat | None = None
    """Adaptive KL: nats per answer to steer KL to by moving kl_coef between rollouts (Ziegler et al. 2019, section
    2.2)."""
    kl_horizon: Count = 10_000
    """Samples over which kl_coef reacts to kl_target (10,000 in the code of Ziegler et al. 2019)."""
    max_approx_kl: PositiveFloat | None = None
    """Leave a rollout for the next where a step measures more nats than this between the rollout's policy and the one
    that trains (per token; rloo: per answer); target_kl of Spinning Up and CleanRL, 0.01 to 0.02 there."""
    importance: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] | None = None
    """Weigh advantages by how likely the trainer finds a token, or the answer, against the sampler, between
    importance_min and importance_max: what is beyond is brought to the limit (truncate; of tokens: TIS) or left out
    (mask), as TRL's vllm_importance_sampling_mode has it. Where both compute alike, as in one process, weights are 1
    but for rounding."""
    importance_max: PositiveFloat = 3.0
    """Largest such weight (TRL's default)."""
    importance_min: NonNegativeFloat = 0.0
    """Smallest such weight."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of the policy's mean entropy per token, which the loss is lowered by (Schulman et al. 2017, eq. 9)."""
    rollout_size: Count = 128
    """Samples per rollout, batch_size of which are used at a time."""
    max_new_tokens: Count = 64
    """Longest answer; one that does not end by then gets missing_eos_penalty."""
    temperature: float = Field(default=1.0, ge=1e-3, le=1e3)
    """Sampling temperature, applied in the log-probs as well."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate; ten times the 1e-5 or less of full fine-tuning, as LoRA wants."""
    batch_size: Count = 32
    """Samples per optimizer step, over all ranks."""
    watch_prompts: FromZero = 4
    """Prompts that are answered again and again while training goes on, greedily, so that it goes the same without;
    kept in the result."""
    rollouts: RolloutServer | None = None
    """A server that draws the answers; without it, this process does."""
    guard: RolloutLimits = RolloutLimits()
    trust_reward: Annotated[bool, Runtime] = False
    """Train on a reward model that on its own held-out pairs is surely worse than a rule that looks at nothing but
    length."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found = super().conflicts(given)
        rewards = given.get("reward")
        if isinstance(rewards, list) and (twice := next((r for i, r in enumerate(rewards) if r in rewards[:i]), None)):
            found.append(f"reward: {twice} is given twice. Name it once.")
        rollout, batch, group = (given.get(k) for k in ("rollout_size", "batch_size", "group_size"))
        if isinstance(rollout, int) and isinstance(batch, int) and batch > 0 and rollout % batch:
            found.append(f"rollout_size ({rollout}) must be a multiple of batch_size ({batch}).")
        if isinstance(batch, int) and isinstance(group, int) and group > 0 and batch % group:
            found.append(f"batch_size ({batch}), which counts samples, must be a multiple of group_size ({group}).")
        found += asked.answers_to_compare(given, "group_size" if "group_size" in cls.model_fields else None)
        horizon, steered = given.get("kl_horizon"), given.get("kl_target") is not None
        new, longest = given.get("max_new_tokens"), given.get("max_length")
        if isinstance(new, int) and isinstance(longest, int) and new >= longest:
            found.append(
                f"max_new_tokens ({new}) leaves no room for a prompt within max_length ({longest}); raise max_length."
            )
        found += served_wrongly(given, "importance" in cls.unread)
        buffer = given.get("overlong_buffer")
        if isinstance(buffer, int) and isinstance(new, int) and buffer >= new:
            found.append(
                f"overlong_buffer ({buffer}) is not below max_new_tokens ({new}), so that every answer would be too "
                "long. Lower it."
            )
        adapter = given.get("adapter")
        if isinstance(adapter, Adapter) and adapter.init_lora_weights == "eva":
            found.append(
                "adapter.init_lora_weights is eva, which looks at records, and here are prompts alone. Take pissa or "
                "olora, or start sft so."
            )
        least, most = given.get("importance_min"), given.get("importance_max")
        if isinstance(least, float) and isinstance(most, float) and least > most:
            found.append(f"importance_min ({least:g}) is above importance_max ({most:g}). Exchange them.")
        if steered and given.get("kl_coef") == 0:
            found.append(
                "kl_target is set, but kl_coef is 0 and the price of KL is multiplied to steer it; give it a start "
                "above 0."
            )
        if steered and isinstance(rollout, int) and isinstance(horizon, int) and horizon < rollout:
            found.append(
                f"kl_horizon ({horizon}) must be at least rollout_size ({rollout}), or the price of KL would jump."
            )
        return found

    @property
    def steps_each(self) -> int:
        """Optimizer steps on each rollout."""
        passes: int = getattr(self, "ppo_epochs" if "ppo_epochs" in type(self).model_fields else "rollout_epochs", 1)
        return passes * (self.rollout_size // self.batch_size)

    @property
    def one_step(self) -> bool:
        """Whether each rollout is trained on in a single step, in which policy and values are as they were measured."""
        return self.steps_each == 1

    def last_move(self, steps: int) -> int:
        """Where the last rollout begins, before which the reference moves; of rollouts left early that is not known."""
        each = 1 if self.max_approx_kl is not None else self.steps_each
        return (steps - 1) // each * each

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        held_out = (
            "reinforcement learning holds no prompts out. Leave it out; hold_out keeps prompts from training, "
            "and `align evaluate` measures what comes out."
        )
        found.pop("watch_prompts", None)
        found |= dict.fromkeys(("eval_data", "eval_fraction", *LOOKS), held_out)
        found["watch_tokens"] = "watched prompts are answered as all others, by max_new_tokens. Leave it out."
        if self.truncate == "cut":
            found["truncate"] = "a prompt that was cut would lose its question. Take `drop` or `error`."
        if self.kl_target is None:
            found["kl_horizon"] = "kl_target is not set, so kl_coef does not move. Set kl_target, or leave it out."
        if len(self.reward if isinstance(self.reward, list) else []) < 2:
            why = "it takes at least two reward artifacts. Name more, in a recipe also all runs of a swept stage"
            found["reward_deviations"] = f"{why} (`[NAME]`), or leave it out."
        if self.importance is None:
            why = "importance is not set, so nothing is weighed. Set it, or leave this out."
            found |= dict.fromkeys(("importance_min", "importance_max"), why)
        if self.kl_coef == 0:
            found["kl_estimator"] = "kl_coef is 0, so KL has no price. Leave it out."
            why = "kl_coef is 0, so the reference has no part in training. Leave it out, or set kl_coef."
            found |= dict.fromkeys(("ref_model_sync_steps", "ref_model_mixup_alpha"), why)
        if self.one_step:
            why = (
                "a rollout is trained on in one step, before which nothing has moved. Take more passes, or a "
                "smaller batch_size."
            )
            found |= dict.fromkeys(("clip", "clip_high", "value_clip", "max_approx_kl"), why)
        if not self.reward:
            found["trust_reward"] = "no reward artifact is trained on, and judges are not checked. Leave it out."
        missing = unseen(self.weights, "value" in type(self).model_fields, getattr(self, "group_size", 1) > 1)
        found |= {f"guard.{sign}": f"{why}. Leave it out." for sign, why in missing.items()}
        if {"reward_hacking", "explained_variance"} <= missing.keys():
            found["guard.window"] = "neither reward_hacking nor explained_variance can be seen here. Leave it out."
        if never := [f"{sign} ({missing[sign]})" for sign in self.guard.stop if sign in missing]:
            found["guard.stop"] = f"it names {never[0]}. Leave that out."
        return found

    def check_parents(self, parents: Mapping[str, Artifact]) -> list[str]:
        artifacts = rewards_of(parents)
        if self.reward_deviations is not None and (
            odd := [n for n in artifacts if self.weights.get(n, 1) not in (0, 1)]
        ):
            raise InputError(
                f"weights: {odd[0]} is one of an ensemble (reward_deviations), in which all count the same. Leave its "
                "weight out, or set it to 0 to watch it alone."
            )
        for key, names in (("judges", self.judges), ("reward", artifacts)):
            if self.judge_prompt and asked.NAME in names:
                raise InputError(
                    f"{key}: {asked.NAME} is what a model that is asked is called; call it something else."
                )
            if taken := sorted(TAKEN & names.keys()):
                raise InputError(
                    f"{key}: {taken[0]} is what a figure of the sum of rewards is called; call it something else."
                )
        return check_rewards(artifacts, self.weights, self.trust_reward)


class RewardKLConfig(RLConfig):
    """KL in the reward"""

    kl_estimator: Literal["k1", "k3"] = "k1"
    """How KL is estimated at each token: k1's gradient is that of KL; k3 is never negative and varies less, but hardly
    pulls while the policy is close to the reference (http://joschu.net/blog/kl-approx.html; rl/kl.py)."""


def rewards_of(parents: Mapping[str, Artifact]) -> dict[str, Artifact]:
    return {role.partition("/")[2] or role: a for role, a in parents.items() if role.partition("/")[0] == "reward"}
