"""A run of reinforcement learning before its policy: the roles that score, and a source of sampled answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from align import judges, losses, memory, packed, rl, training
from align.data.formats import read_prompts
from align.data.records import Prompt
from align.data.split import opening
from align.data.steps import in_seeded_passes
from align.ground.errors import InputError, NothingLeft
from align.ground.terminal import counted, say
from align.guard.rl import RolloutGuard, rollout_signs
from align.judges import asked
from align.rl.settings import RLConfig, rewards_of
from align.rl.watch import Watch
from align.stage import learning, mixture, on_base, outcomes, reading, trained_on
from align.stage.describe import Outcome, Stage, all_with
from align.stage.workbench import Workbench
from align.store import Artifact, News

if TYPE_CHECKING:
    from torch import Tensor

    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch
    from align.rendering.render import Renderer
    from align.rl.advantages import Advantages, Rollout
    from align.rl.collect import Rollouts
    from align.rl.observer import Observer
    from align.rl.rewards import Reward
    from align.training.checks.moving_reference import MovingReference

C = TypeVar("C", bound=RLConfig)


@dataclass(frozen=True)
class Setup:
    """A run before its policy: prompts, and a base with reference and rewards on it."""

    bench: Workbench
    renderer: Renderer
    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    roles: Roles
    rewards: list[Reward]
    moving: list[MovingReference] = field(default_factory=list)
    """What moves the reference, where something does."""

    def train_only(self, *names: str, heads: Sequence[str] = ()) -> None:
        """The policy and all else are on the base: say what trains, and where the reference moves."""
        moving = on_base.moving_reference(self.bench, self.roles)
        self.moving.extend([moving] if moving else [])
        self.roles.train_only(*names, heads=heads)

    def rollouts(self, advantages: Callable[..., Any], epochs: int, **more: Any) -> Rollouts:
        """The source of optimizer steps, once it is settled what trains; `more` as `rl.collect.Rollouts` takes it."""
        keep = learning.trunk_keeper(self.bench, self.roles, passing=True)
        source = rl.collect.Rollouts(
            self.roles,
            self.prompts,
            self.prompt_ids,
            self.renderer,
            self.bench.config,
            rewards=self.rewards,
            advantages=advantages,
            epochs=epochs,
            keep=keep,
            moving=self.moving,
            served=rl.server.sampler.served(self.bench, self.roles, self.renderer),
            **more,
        )
        source.observers = self.observers(source)
        return source

    def observers(self, source: Rollouts) -> list[Observer]:
        """Who looks on: the guard, and the prompts that are answered again and again."""
        c, title = self.bench.config, self.bench.title
        monitors = [r.name for r in self.rewards if r.weight == 0]
        watch = Watch(
            self.prompts,
            self.prompt_ids,
            lambda ids: self.renderer.answer(ids, c.stop),
            count=c.watch_prompts,
            seed=c.seed,
            rollouts=source.rollouts,
            max_new_tokens=c.max_new_tokens,
            title=title,
            news=News(self.bench.run),
        )
        guard = RolloutGuard(c.guard, title, monitors, source.groups, rollout_signs(c.rollouts, source.resample))
        return [guard, watch, *(rl.server.observers.of(source) if c.rollouts else [])]

    def fit(
        self, loss: Callable[[Roles, Batch], Loss | Iterator[Loss]], source: Rollouts, sometimes_idle: bool = False
    ) -> tuple[list[dict[str, float]], Any]:
        """Train what is trainable: history and cost; `sometimes_idle` as `training.trainer.fit` takes it."""
        bench = self.bench
        at_least = "at least " if bench.config.max_approx_kl is not None else ""
        rollouts = f"{at_least}{counted(source.rollouts, 'rollout')} of {counted(bench.config.rollout_size, 'sample')}"
        steps = counted(source.steps, "optimizer step")
        alone = "; its figures are of answers sampled before the first step" if source.rollouts == 1 else ""
        say(f"{bench.title}: {counted(len(self.prompts), 'prompt')}, {rollouts}, {steps}{alone}")
        more: Any = {"title": bench.title, "checkpoints": bench.checkpoints, "show": ("reward/mean", "kl", "eos_rate")}
        with rl.server.sampler.closing(source.sampler):
            made = training.trainer.fit(self.roles, loss, source, bench.config, **more, sometimes_idle=sometimes_idle)
            for observer in source.observers:
                observer.end(source.sampler, bench.folder)
        for moving in self.moving:
            moving.note(bench.folder)
        answered = in_seeded_passes(range(source.asked), len(self.prompts), bench.config.seed)
        trained_on.note(bench.folder, (opening(self.prompts[i]) for i in answered))
        return made


def set_up(bench: Workbench) -> Setup:
    """Everything but the policy, which comes last: a fresh adapter's draw depends on what was drawn before.

    Raises: InputError for a judge that does not load or asks for what there is not, a weight of nothing, or a prompt
    that is too long.
    """
    config = bench.config
    ready(bench)
    records = reading.read(bench, "data")
    functions = judges.load_all(config.judges, records, bench.settings["judges"], bench.programs)
    renderer = bench.load_renderer()
    prompts, prompt_ids = prompts_that_fit(
        bench, renderer, mixture.mixed(bench, records, reading.without_held_out(bench, records)[0])
    )
    rl.server.checks.check_server(bench, prompt_ids)
    roles = bench.load_base()
    on_base.add_reference(bench, roles)
    rewards = rl.rewards.of_stage(bench, roles, reward_artifacts(bench), functions, renderer, prompts)
    return Setup(bench, renderer, prompts, prompt_ids, roles, rewards)


def ready(bench: Workbench, looked: Mapping[str, Any] | None = None) -> None:
    """Rewards can be told apart and one is trained on, and the server that is named can take the policy. Raises:
    InputError."""
    check_weights(bench)
    rl.server.checks.check_policy(bench, ahead=looked is not None)


def check_weights(bench: Workbench) -> None:
    """Rewards have a name and a weight each, and one of them is trained on. Raises: InputError."""
    config, artifacts = bench.config, reward_artifacts(bench)
    if twice := sorted(artifacts.keys() & config.judges.keys()):
        raise InputError(f"judges: {twice[0]} is what a reward artifact is called; call the judge something else.")
    names = [*artifacts, *config.judges, *([asked.NAME] if config.judge_prompt else [])]
    if unknown := [name for name in config.weights if name not in names]:
        raise InputError(f"weights: {unknown[0]} is no reward of this stage; it has {', '.join(names)}.")
    if all(config.weights.get(name) == 0 for name in names):
        raise InputError(
            f"weights: {', '.join(names)} have weight 0, so there is nothing to train on; leave out a weight, or give "
            "one above 0."
        )


def prompts_that_fit(
    bench: Workbench, renderer: Renderer, records: list[Prompt]
) -> tuple[list[Prompt], list[list[int]]]:
    """Prompts and their token ids; those that leave no room to answer within `max_length`, and the context, are left
    out and counted where `truncate` is drop.

    Raises: InputError for such a prompt elsewhere, and where none is left.
    """
    c, longest = bench.config, renderer.max_length
    rendered = renderer.prompt_rows(records)
    bench.say_counts(renderer)
    prompts, rows = [prompt for prompt, _ in rendered], [ids for _, ids in rendered]
    fit = [len(ids) + c.max_new_tokens <= longest for ids in rows]
    if not all(fit):
        limit = "the model's context" if longest < c.max_length else "max_length"
        long = f"tokens and {c.max_new_tokens} more are to be sampled, but {limit} is {longest:,}"
        first = fit.index(False)
        if c.truncate != "drop":
            raise InputError(
                f"{prompts[first].where}: the prompt has {len(rows[first]):,} {long}. Shorten or remove the row, set "
                "`truncate: drop` to leave such prompts out, or set max_new_tokens lower."
            )
        if not any(fit):
            raise NothingLeft(
                f"all {len(rows):,} prompts were dropped: the first has {len(rows[first]):,} {long}. Lower "
                "max_new_tokens."
            )
        say(
            f"{bench.title}: {fit.count(False):,} of {len(rows):,} prompts dropped: no room to answer within {limit} "
            f"({longest:,})"
        )
    return [p for p, fits in zip(prompts, fit, strict=True) if fits], [
        ids for ids, fits in zip(rows, fit, strict=True) if fits
    ]


def reward_artifacts(bench: Workbench) -> dict[str, Artifact]:
    """The reward artifacts by the names that their weights and figures have: `reward`, or of several the end of each
    ref."""
    return rewards_of(bench.parents)


def policy_logprobs(roles: Roles, batch: Batch, config: RLConfig) -> tuple[Tensor, Tensor, Loss]:
    """One forward of the policy: hidden states (N, D) of the rows that count, log-probs (T), and the entropy bonus,
    without terms where its weight is 0."""
    with roles.use("policy"):
        hidden = roles.hidden(batch, batch.rows)
        if not config.entropy_coef:
            return hidden, packed.forward.logprobs(hidden, roles.head, batch, config.temperature), losses.loss.Loss({})
        logprobs, entropies = packed.forward.logprobs_and_entropies(hidden, roles.head, batch, config.temperature)
        return hidden, logprobs, losses.tokens.entropy_bonus(entropies, config.entropy_coef)


def train_in_groups(
    bench: Workbench,
    advantages: Callable[[Rollout, Any], Advantages],
    loss: Callable[[Roles, Batch, Rollouts], Loss],
    resample: int = 0,
) -> Outcome:
    """The work of stages without a value role: the policy is trained on groups of answers to a prompt, each against the
    others. `loss` is told the source of rollouts, for what moves from one to the next; groups of equal scores are drawn
    anew at most `resample` times."""
    config, start = bench.config, set_up(bench)
    on_base.add_policy(bench, start.roles)
    start.train_only("policy")
    source = start.rollouts(
        lambda r: advantages(r, config),
        config.rollout_epochs,
        group_size=config.group_size,
        resample=resample,
    )
    history, cost = start.fit(lambda r, b: loss(r, b, source), source)
    return outcomes.adapter_artifact(bench, start.roles, start.renderer, summary(history), history, cost)


def reinforced(
    name: str,
    *,
    version: int,
    config: type[C],
    work: Callable[..., Outcome],
    does: str,
    phases: Callable[[memory.Workload], list[memory.Phase]] = memory.kinds.in_groups,
    ready: Callable[..., None] = ready,
    encoder_decoders: bool = True,
) -> Stage[C]:
    """A stage of reinforcement learning: its policy learns from rewards of answers to prompts."""
    return Stage(
        name,
        version=version,
        config=config,
        inputs={"parent": ("adapter", "model"), "reward": ("reward",), "judge_model": ("adapter",)},
        work=work,
        makes=("adapter",),
        reads=all_with(read_prompts),
        learns_from="rewards",
        footprint=memory.Footprint(phases, memory.rows.whole),
        does=f"{does} against rewards",
        tags=(name,),
        encoder_decoders=encoder_decoders,
        ready=ready,
        prompts=prompts_that_fit,
    )


def summary(history: list[dict[str, float]], *names: str) -> dict[str, float]:
    """For the manifest: the reward of the first and the last rollout, and the last figures of `names` and of what all
    RL stages measure."""
    first, last = history[0], history[-1]
    found = {"reward/first": first["reward/mean"], "reward/last": last["reward/mean"]}
    shared = [n for n in last if n.startswith(("reward/", "sampler_gap/"))]
    shared += [n for n in SUMMARISED if n in last]
    return found | {n: last[n] for n in (*shared, *names)}


SUMMARISED = (
    "kl",
    "kl_coef",
    "left_early",
    "resampled",
    "reference/moves",
    "importance/mean",
    "importance/limited",
    "entropy",
    "clip_fraction",
    "eos_rate",
    "length",
    "groups_without_variance",
    "score/mean",
    "guard/warnings",
)
"""Figures of every RL stage that the manifest has from the last line of its history, where it has them."""
