"""Experience of RL stages as a step source: sample, score, measure log-probs, then yield epochs x minibatches of
optimizer steps.

It knows no algorithm: what a token was worth is said by the stage's own advantage function, which gets a whole
`Rollout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from align.data import steps
from align.data.examples import Example
from align.data.records import Prompt
from align.ground.json import Json
from align.ground.terminal import say
from align.judges import Judge
from align.models.process import trim_heap
from align.models.roles import Roles
from align.packed import forward
from align.packed.batches import batches
from align.packed.pack import Batch
from align.rendering.render import Renderer
from align.rl.advantages import Advantages, Rollout
from align.rl.groups import ScoredGroup, attach, gather, in_seeded_passes
from align.rl.kl import Price
from align.rl.observer import Observer
from align.rl.rewards import Reward, Samples, scored, total
from align.rl.rollout_figures import figures
from align.rl.shaping import Moments, shaped
from align.rl.stored_examples import StoredExamples, dump, restore
from align.sampling.rollout import as_example, sampler
from align.training.checks.start import assert_starts_at_reference
from align.training.processes import rank_and_world
from align.training.steps import OptimizerStep, make_step

if TYPE_CHECKING:
    from align.rl.settings import RLConfig


def nothing(roles: Roles, batch: Batch, hidden: Tensor) -> dict[str, Tensor]:
    """No measurements beside those of every stage."""
    return {}


COUNTS = ("taken", "done", "left_early", "place")
"""The counts of `Rollouts` that are saved."""


class RolloutsState(TypedDict):
    """What a checkpoint keeps of `Rollouts`; the examples of a rollout that is through are left out."""

    counts: dict[str, int]
    kl_coef: float
    moments: dict[str, float]
    measured: dict[str, float]
    examples: StoredExamples
    dropped: list[bool]
    begun: tuple[dict[str, float], float] | None
    observers: list[Json]


class Rollouts:
    """Optimizer steps over sampled answers.

    A rollout is left for the next one before its steps are through where the policy has moved further than
    `max_approx_kl` in the last of them; steps are counted all the same, so that the run takes as many as were asked
    for.

    Args:
        prompts, prompt_ids: what is answered, as records for judges and as token ids.
        config: of the stage.
        advantages: the algorithm.
        epochs: passes over each rollout.
        measure: what to measure of every sample beside log-probs and entropies, (T,) by name; it gets the policy's
            hidden states (N, D) of the rows that count.
        keep: fills groups with what enters the first layer that trains (`models.trunk_cache`), or leaves them as they
            are.
        begin: called with each reward's mean and the deviation of their weighted sum in the first rollout, before
            anything is measured; and with the same again where a run goes on, before what was trained is read.
    """

    def __init__(
        self,
        roles: Roles,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        renderer: Renderer,
        config: RLConfig,
        *,
        rewards: Sequence[Reward],
        advantages: Callable[[Rollout], Advantages],
        epochs: int,
        group_size: int = 1,
        measure: Callable[[Roles, Batch, Tensor], Mapping[str, Tensor]] = nothing,
        keep: Callable[[Sequence[Example]], list[Example]] = list,
        begin: Callable[[Mapping[str, float], float], None] | None = None,
    ):
        self.roles, self.renderer, self.config = roles, renderer, config
        self.prompts, self.prompt_ids = prompts, prompt_ids
        self.rewards, self.advantages, self.measure_also = rewards, advantages, measure
        self.epochs, self.group_size = epochs, group_size
        self.keep, self.begin = keep, begin
        self.begun: tuple[dict[str, float], float] | None = None
        self.observers: Sequence[Observer] = ()
        self.sampler = sampler(roles, "policy", renderer, config.stop)
        self.groups = config.rollout_size // group_size
        self.steps, self.rollouts, self.period = steps.reinforced(len(prompt_ids), config, epochs, group_size)
        self.kl = Price(config.kl_coef, config.kl_target, config.kl_horizon)
        self.moments = Moments()
        # steps given out, rollouts begun, and those left before their end
        self.taken, self.done, self.left_early = 0, 0, 0
        self.place = self.period  # steps given out of the rollout in progress
        self.examples: list[Example] = []
        self.dropped = np.zeros(0, dtype=bool)
        self.measured: dict[str, float] = {}
        self.said = False

    # ---- what the trainer asks for -----------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Figures of the current rollout, for the log."""
        found = dict(self.measured)
        for observer in self.observers:
            found |= observer.metrics()
        return found

    def feedback(self, means: Mapping[str, float]) -> None:
        """Leave the rollout where the last step's mean `approx_kl` is above `max_approx_kl` (target_kl of Spinning Up
        and CleanRL)."""
        if self.place == 1:
            for observer in self.observers:
                observer.first_step(means)
        limit = self.config.max_approx_kl
        if limit is not None and means.get("approx_kl", 0.0) > limit:
            self.left_early += self.place < self.period
            self.place = self.period

    def state_dict(self) -> RolloutsState:
        in_progress = self.place < self.period
        return {
            "counts": {name: getattr(self, name) for name in COUNTS},
            "kl_coef": self.kl.coef,
            "moments": self.moments.state_dict(),
            "measured": dict(self.measured),
            "examples": dump(self.examples if in_progress else []),
            "dropped": self.dropped.tolist() if in_progress else [],
            "begun": self.begun,
            "observers": [dict(o.state_dict()) for o in self.observers],
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        saved = cast(RolloutsState, state)
        for name in COUNTS:
            setattr(self, name, saved["counts"][name])
        self.kl.coef, self.measured = saved["kl_coef"], saved["measured"]
        self.moments = Moments.of(saved["moments"])
        self.examples = self.keep(restore(saved["examples"]))
        self.dropped = np.array(saved["dropped"], dtype=bool)
        self.begun = saved["begun"]
        if self.begin and self.begun:
            self.begin(*self.begun)
        for observer, its in zip(self.observers, saved["observers"], strict=True):
            observer.load_state_dict(its)

    def __iter__(self) -> Iterator[OptimizerStep]:
        while self.taken < self.steps:
            if self.place == self.period:
                if self.measured:
                    self.kl.update(self.measured["kl"], self.config.rollout_size)
                self.examples, self.dropped = self.collect(self.done)
                for observer in self.observers:
                    observer.rollout(self.done, self.measured, self.sampler)
                self.sampler.forget()
                trim_heap()
                self.done, self.place = self.done + 1, 0
            chosen = self.chosen(self.place)
            self.place, self.taken = self.place + 1, self.taken + 1
            yield make_step([self.examples[i] for i in chosen], self.config.tokens_per_microbatch)

    def chosen(self, place: int) -> np.ndarray:
        """Indices of the groups in one step of the rollout: a seeded order for each pass (core detail 6 of "The 37
        implementation details of PPO"), dropped groups left out."""
        c = self.config
        epoch, index = divmod(place, c.rollout_size // c.batch_size)
        order = np.random.default_rng([c.seed, self.done, epoch]).permutation(self.groups)
        at_a_time = c.batch_size // self.group_size
        chosen = order[index * at_a_time : (index + 1) * at_a_time]
        # a step of nothing but dropped groups is taken over them all the same: their advantages are 0
        return chosen if self.dropped[chosen].all() else chosen[~self.dropped[chosen]]

    # ---- one rollout -------------------------------------------------------------------------------------------------

    def collect(self, index: int) -> tuple[list[Example], np.ndarray]:
        """Sample one rollout and attach to it what the loss reads: one example per group, and which of them are
        dropped.

        Every rank samples and scores its own share of the prompts, by its own draws; what all ranks made is then
        exchanged, so that advantages are over the whole rollout. What is drawn depends on seed, rollout and rank, and
        not on what was drawn before.
        """
        rank, world = rank_and_world()
        groups, mine = self.draw(index, self.order(index)[rank::world])
        everyone = gather(mine)
        examples = groups if world == 1 else self.keep([as_example(drawn.prompt, drawn.ids) for drawn in everyone])
        answers = [answer for drawn in everyone for answer in drawn.answers]
        by_name = {r.name: np.concatenate([d.scores[i] for d in everyone]) for i, r in enumerate(self.rewards)}
        rewards = total(self.rewards, by_name)
        self.say_unscored(rewards, [i for r in range(world) for i in self.order(index)[r::world]])
        lengths, ended = np.array([len(a.ids) for a in answers]), np.array([a.ended for a in answers])
        scores = shaped(rewards, lengths, ended, self.config, self.moments)
        if self.begin and self.done == 0:
            means = {name: float(np.nanmean(values)) for name, values in by_name.items()}
            self.begun = means, float(np.nanstd(rewards))
            self.begin(*self.begun)
        rollout = Rollout(scores, self.measure(examples), self.group_size, self.kl.coef)
        if self.done == 0:
            self.check_start(examples, rollout)
        advantages = self.advantages(rollout)
        self.measured = figures(rollout, rewards, by_name, answers) | self.own_figures() | dict(advantages.metrics)
        columns = {"old_logprobs": rollout.columns["old_logprobs"], **advantages.columns}
        none = np.zeros(len(examples), dtype=bool)
        dropped = none if advantages.dropped is None else advantages.dropped
        return attach(examples, columns, self.group_size), dropped

    def draw(self, index: int, which: list[int]) -> tuple[list[Example], list[ScoredGroup]]:
        """Answers to the prompts `which` and their scores: as examples, and per prompt."""
        c, n = self.config, self.group_size
        prompts = [self.prompt_ids[i] for i in which]
        seed = np.random.SeedSequence([c.seed, index, rank_and_world()[0]]).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(seed))
        answers = self.sampler(prompts, n=n, max_new_tokens=c.max_new_tokens, temperature=c.temperature)
        ids = [[answer.ids for answer in several] for several in answers]
        groups = self.keep([as_example(prompt, its) for prompt, its in zip(prompts, ids, strict=True)])
        flat = [answer for its in ids for answer in its]
        reads_text = any(isinstance(r.score, Judge) for r in self.rewards)
        texts = [self.renderer.answer(answer, c.stop) for answer in flat] if reads_text else []
        samples = Samples(groups, [self.prompts[i] for i in which for _ in range(n)], texts, flat)
        scores = [its.reshape(-1, n) for its in scored(self.rewards, samples)]
        drawn = []
        for i, (prompt, several) in enumerate(zip(prompts, answers, strict=True)):
            drawn.append(ScoredGroup(prompt, several, [its[i] for its in scores]))
        return groups, drawn

    def check_start(self, examples: list[Example], rollout: Rollout) -> None:
        """The first rollout was drawn from the reference itself. Raises: AlignError."""
        whole = attach(examples, {"ref_logprobs": rollout.columns["ref_logprobs"]}, self.group_size)
        c = self.config
        assert_starts_at_reference(self.roles, whole, c.tokens_per_microbatch, temperature=c.temperature)

    def say_unscored(self, rewards: np.ndarray, order: Sequence[int]) -> None:
        """Say once that answers have no score, with the first one's prompt (TRL warns in each batch); `unscored` is in
        every log line."""
        unscored = np.flatnonzero(np.isnan(rewards))
        if not len(unscored) or self.said:
            return
        self.said = True
        where = self.prompts[order[unscored[0] // self.group_size]].where
        found = (
            f"{len(unscored):,} of {len(rewards):,} answers got no score from any reward (None), the first to {where}"
        )
        say(f"{found}: nothing is learnt from them")

    def order(self, index: int) -> list[int]:
        """Which prompts the rollout takes."""
        places = range(index * self.groups, (index + 1) * self.groups)
        return in_seeded_passes(places, len(self.prompt_ids), self.config.seed)

    @torch.no_grad()
    def measure(self, examples: list[Example]) -> dict[str, list[np.ndarray]]:
        """Per sample, at the positions of its answer: policy and reference log-probs, entropies, and what the stage
        measures."""
        roles, c, n = self.roles, self.config, self.group_size
        out: dict[str, list[np.ndarray]] = {}
        for indices, batch in batches(examples, c.tokens_per_microbatch, roles.base.device):
            with roles.use("policy"):
                hidden = roles.hidden(batch, batch.rows)
                old_logprobs, entropies = forward.logprobs_and_entropies(hidden, roles.head, batch, c.temperature)
            found = {"old_logprobs": old_logprobs, "entropy": entropies, **self.measure_also(roles, batch, hidden)}
            found["ref_logprobs"] = roles.logprobs("reference", batch, c.temperature)
            samples = [i * n + j for i in indices for j in range(n)]
            masks = batch.split(batch.loss_mask.cpu())
            for name, values in found.items():
                column = out.setdefault(name, [np.empty(0)] * (n * len(examples)))
                for i, piece, mask in zip(samples, batch.split(values.float().cpu()), masks, strict=True):
                    column[i] = piece[mask].numpy()
        return out

    def own_figures(self) -> dict[str, float]:
        """What there is to log where KL is controlled."""
        found = {} if self.config.kl_target is None else {"kl_coef": self.kl.coef}
        return found if self.config.max_approx_kl is None else found | {"left_early": self.left_early}
