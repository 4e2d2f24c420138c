"""What the stages of reinforcement learning share: settings, the roles that score, and a run over sampled answers.

`ppo`, `grpo`, `rloo` and `reinforce_pp` each say how advantages and loss are worked out; sampling, scoring and measuring are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from align import core, judge
from align.console import say
from align.data.formats import read_prompts
from align.data.records import Prompt
from align.errors import InputError
from align.recipe import Place, Ref, TrainConfig
from align.stage import Job
from align.store import Artifact

if TYPE_CHECKING:
    from align.core.experience import Rollouts
    from align.core.losses import Loss
    from align.core.pack import Batch
    from align.core.rewards import Reward
    from align.core.roles import Roles
    from align.data.render import Renderer

INPUTS = {"parent": ("adapter", "model"), "reward": ("reward",)}


def _one(value: object) -> object:
    """A list of one artifact is that artifact, as the command line gives it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class RLConfig(TrainConfig):
    """Reinforcement learning

    `data` holds prompts, whose other keys go to the judges; `epochs` are passes over the prompts.
    """

    reward: Annotated[Ref | list[Ref] | None, BeforeValidator(_one)] = None
    """The reward artifact, or several; on the same base as the parent."""
    judges: dict[str, Place] = Field(default_factory=dict)
    """Name -> FILE.py:FUNCTION in TRL's reward signature: Python functions that reward answers, beside reward artifacts or instead."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Name -> weight in the sum of rewards, 1 where none is given. One artifact is called reward, of several each by the end of its ref."""
    kl_coef: NonNegativeFloat = 0.05
    """Price per nat of KL from the reference, taken off each token's reward (Ziegler et al. 2019, eq. 2)."""
    rollout_size: PositiveInt = 128
    """Samples per rollout, batch_size of which are used at a time."""
    max_new_tokens: PositiveInt = 64
    """Longest answer; one that does not end by then gets missing_eos_penalty."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature, applied in the log-probs as well."""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """Taken off the score of an answer without end-of-turn token (the EOS trick, N+ details, section 3.3)."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate; ten times the 1e-5 or less of full fine-tuning, as LoRA wants."""
    batch_size: PositiveInt = 32
    """Samples per optimizer step, over all ranks."""

    @classmethod
    def conflicts(cls, given: Mapping[str, Any]) -> list[str]:
        found = super().conflicts(given)
        if not given.get("reward") and not given.get("judges"):
            found.append("neither reward nor judges is set; give a reward artifact, a Python function (judges.NAME), or both.")
        rollout, batch, group = (given.get(k) for k in ("rollout_size", "batch_size", "group_size"))
        if isinstance(rollout, int) and isinstance(batch, int) and batch > 0 and rollout % batch:
            found.append(f"rollout_size ({rollout}) must be a multiple of batch_size ({batch}).")
        if isinstance(batch, int) and isinstance(group, int) and group > 0 and batch % group:
            found.append(f"batch_size ({batch}), which counts samples, must be a multiple of group_size ({group}).")
        return found


@dataclass(frozen=True)
class Setup:
    """A run before its policy: prompts, and a base with reference and rewards on it."""

    job: Job
    renderer: Renderer
    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    roles: Roles
    rewards: list[Reward]

    def rollouts(self, advantages: Callable[..., Any], epochs: int, **more: Any) -> Rollouts:
        """The source of optimizer steps, once it is settled what trains; `more` as `core.experience.Rollouts` takes it."""
        keep = self.job.keeper(self.roles, passing=True)
        return core.experience.Rollouts(
            *(self.roles, self.prompts, self.prompt_ids, self.renderer, self.job.config),
            **{"rewards": self.rewards, "advantages": advantages, "epochs": epochs, "keep": keep, **more},
        )

    def fit(self, loss: Callable[[Roles, Batch], Loss], source: Rollouts) -> tuple[list[dict[str, float]], Any]:
        """Train what is trainable: history and cost."""
        job = self.job
        rollouts = f"{source.rollouts} rollouts of {job.config.rollout_size} samples"
        say(f"{job.title}: {len(self.prompts):,} prompts, {rollouts}, {source.steps} optimizer steps")
        show = ("reward/mean", "kl", "eos_rate")
        return core.trainer.fit(self.roles, loss, source, job.config, title=job.title, checkpoints=job.checkpoints, show=show)


def set_up(job: Job) -> Setup:
    """Everything but the policy, which comes last: a fresh adapter's draw depends on what was drawn before.

    Raises: InputError for a judge that does not load, a weight of nothing, or a prompt that is too long.
    """
    config = job.config
    artifacts, judges = reward_artifacts(job), {name: judge.load(function) for name, function in config.judges.items()}
    if twice := sorted(artifacts.keys() & judges.keys()):
        raise InputError(f"judges: {twice[0]} is what a reward artifact is called; call the judge something else.")
    names = [*artifacts, *judges]
    if unknown := [name for name in config.weights if name not in names]:
        raise InputError(f"weights: {unknown[0]} is no reward of this stage; it has {', '.join(names)}.")
    renderer = job.load_renderer()
    prompts = job.read("data", read_prompts)
    prompt_ids = renderer.prompts(prompts, config.max_new_tokens, job.context)
    roles = job.load_base()
    job.add_reference(roles)
    rewards = []
    for i, (name, artifact) in enumerate(artifacts.items()):
        role = "reward" if i == 0 else f"reward_{i}"
        job.add_role(roles, role, job.store.folder(artifact))
        rewards.append(core.rewards.by_model(name, config.weights.get(name, 1.0), roles, role, config.tokens_per_microbatch))
    rewards += [core.rewards.by_judge(name, config.weights.get(name, 1.0), function) for name, function in judges.items()]
    return Setup(job, renderer, prompts, prompt_ids, roles, rewards)


def reward_artifacts(job: Job) -> dict[str, Artifact]:
    """The reward artifacts by the names that their weights and figures have: `reward`, or of several the end of each ref."""
    return {role.partition("/")[2] or role: a for role, a in job.parents.items() if role.partition("/")[0] == "reward"}


def summary(history: list[dict[str, float]], *names: str) -> dict[str, float]:
    """For the manifest: the reward of the first and the last rollout, and the last figures of `names` and of what all RL stages measure."""
    first, last = history[0], history[-1]
    found = {"reward/first": first["reward/mean"], "reward/last": last["reward/mean"]}
    shared = [n for n in last if n.startswith("reward/")]
    shared += [n for n in ("kl", "entropy", "clip_fraction", "eos_rate", "length", "groups_without_variance") if n in last]
    return found | {n: last[n] for n in (*shared, *names)}
