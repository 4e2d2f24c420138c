"""Experience of RL stages as a step source: sample, score, measure log-probs, then yield epochs x minibatches of
optimizer steps.

It knows no algorithm: what a token was worth is said by the stage's own advantage function, which gets a whole
`Rollout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from align.data import steps
from align.data.examples import Example
from align.data.records import Prompt
from align.ground.terminal import say
from align.models.process import trim_heap
from align.models.roles import Roles
from align.rendering.render import Renderer
from align.rl.advantages import Advantages, Rollout, corrected, without_variance
from align.rl.groups import DrawnGroup, ScoredGroup, attach, gather
from align.rl.kl import Price
from align.rl.measured import Also, check_start, measured, nothing
from align.rl.observer import Observer
from align.rl.rewards import Reward, Samples, members, scored, total
from align.rl.rollout_figures import figures, known
from align.rl.shaping import Moments, shaped
from align.rl.stored_examples import COUNTS, RolloutsState, dump, restore
from align.sampling.rollout import as_example, sampler
from align.training.processes import rank_and_world
from align.training.steps import OptimizerStep, make_step

if TYPE_CHECKING:
    from align.rl.server.sampler import ServedSampler
    from align.rl.settings import RLConfig
    from align.training.checks.moving_reference import MovingReference


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
        measure: what to measure of every sample beside log-probs and entropies.
        keep: fills groups with what enters the first layer that trains (`models.trunk_cache`), or leaves them as they
            are.
        moving: what moves the reference before a rollout, where something does.
        resample: how often, at most, groups of a rollout without variance are drawn anew from further prompts.
        begin: called with each reward's mean and the deviation of their weighted sum in the first rollout, before
            anything is measured; and with the same again where a run goes on, before what was trained is read.
        served: a server that draws the answers.
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
        measure: Also = nothing,
        keep: Callable[[Sequence[Example]], list[Example]] = list,
        begin: Callable[[Mapping[str, float], float], None] | None = None,
        moving: Sequence[MovingReference] = (),
        resample: int = 0,
        served: ServedSampler | None = None,
    ):
        self.roles, self.renderer, self.config = roles, renderer, config
        self.prompts, self.prompt_ids = prompts, prompt_ids
        self.rewards, self.advantages, self.measure_also = rewards, advantages, measure
        self.epochs, self.group_size = epochs, group_size
        self.keep, self.begin, self.moving, self.resample = keep, begin, moving, resample
        self.begun: tuple[dict[str, float], float] | None = None
        self.observers: Sequence[Observer] = ()
        self.sampler = served or sampler(roles, "policy", renderer, config.stop)
        self.groups = config.rollout_size // group_size
        self.steps, self.rollouts, self.period = steps.reinforced(len(prompt_ids), config, epochs, group_size)
        self.kl = Price(config.kl_coef, config.kl_target, config.kl_horizon)
        self.moments = Moments()
        # steps given out, rollouts begun, and those left before their end
        self.taken, self.done, self.left_early = 0, 0, 0
        self.asked, self.resampled = 0, 0  # prompts taken of the seeded passes, and groups drawn anew
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
            "moving": [m.state_dict() for m in self.moving],
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
        for moving, state_of_it in zip(self.moving, saved["moving"], strict=True):
            moving.load_state_dict(state_of_it)
        for observer, state_of_it in zip(self.observers, saved["observers"], strict=True):
            observer.load_state_dict(state_of_it)

    def __iter__(self) -> Iterator[OptimizerStep]:
        while self.taken < self.steps:
            if self.place == self.period:
                if self.measured:
                    self.kl.update(self.measured["kl"], self.config.rollout_size)
                for moving in self.moving:
                    moving.after(self.taken)
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
        drawn = self.with_variance(index, self.draw_all(index, self.groups))
        by_name, rewards, scores = self.score(drawn, self.moments)
        self.say_unscored(rewards, drawn)
        examples, answers = [d.example for d in drawn], [answer for d in drawn for answer in d.group.answers]
        if self.begin and self.done == 0:
            means = {name: float(known(values).mean()) for name, values in by_name.items() if len(known(values))}
            self.begun = means, float(np.nanstd(rewards))
            self.begin(*self.begun)
        found = measured(self.roles, examples, self.group_size, self.config, self.measure_also)
        rollout = Rollout(scores, found, self.group_size, self.kl.coef)
        if self.done == 0:
            check_start(self.roles, examples, found["ref_logprobs"], self.group_size, self.config)
        advantages = corrected(self.advantages(rollout), found["old_logprobs"], answers, self.config)
        self.measured = (
            figures(rollout, rewards, by_name, answers) | self.own_figures(by_name) | dict(advantages.metrics)
        )
        columns = {"old_logprobs": rollout.columns["old_logprobs"], **advantages.columns}
        none = np.zeros(len(examples), dtype=bool)
        dropped = none if advantages.dropped is None else advantages.dropped
        return attach(examples, columns, self.group_size), dropped

    def with_variance(self, index: int, drawn: list[DrawnGroup]) -> list[DrawnGroup]:
        """The groups of a rollout, those without variance drawn anew from further prompts, at most `resample` times:
        dynamic sampling, Yu et al. 2025 (arXiv 2503.14476) section 3.2."""
        world = rank_and_world()[1]
        for attempt in range(1, self.resample + 1):
            scores = self.score(drawn, Moments.of(self.moments.state_dict()))[2]
            flat = np.flatnonzero(without_variance(scores, self.group_size))
            if not len(flat):
                break
            further = self.draw_all(index, -(-len(flat) // world) * world, attempt)
            self.resampled += len(flat)
            for place, group in zip(flat, further, strict=False):  # there may be more, as many for each rank
                drawn[place] = group
        return drawn

    def score(
        self, drawn: Sequence[DrawnGroup], moments: Moments
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Each reward's (S,), their weighted sum, and what that is shaped to, which moves `moments`."""
        by_name = {r.name: np.concatenate([d.group.scores[i] for d in drawn]) for i, r in enumerate(self.rewards)}
        rewards = total(self.rewards, by_name, self.config.reward_deviations)
        answers = [answer for d in drawn for answer in d.group.answers]
        lengths, ended = np.array([len(a.ids) for a in answers]), np.array([a.ended for a in answers])
        return by_name, rewards, shaped(rewards, lengths, ended, self.config, moments)

    def draw_all(self, index: int, count: int, attempt: int = 0) -> list[DrawnGroup]:
        """Answers to the next `count` prompts, by all ranks, and their scores."""
        rank, world = rank_and_world()
        places = range(self.asked, self.asked + count)
        which = steps.in_seeded_passes(places, len(self.prompt_ids), self.config.seed)
        self.asked += count
        examples, mine = self.draw(index, which[rank::world], attempt)
        everyone = gather(mine)
        if world > 1:
            examples = self.keep([as_example(group.prompt, group.ids) for group in everyone])
        return [DrawnGroup(group, example) for group, example in zip(everyone, examples, strict=True)]

    def draw(self, index: int, which: list[int], attempt: int) -> tuple[list[Example], list[ScoredGroup]]:
        """Answers to the prompts `which` and their scores: as examples, and per prompt."""
        c, n = self.config, self.group_size
        prompts = [self.prompt_ids[i] for i in which]
        draws = [c.seed, index, rank_and_world()[0], *([attempt] if attempt else [])]
        torch.manual_seed(int(np.random.SeedSequence(draws).generate_state(1, np.uint64)[0]))
        answers = self.sampler(prompts, n=n, max_new_tokens=c.max_new_tokens, temperature=c.temperature)
        ids = [[answer.ids for answer in several] for several in answers]
        groups = self.keep([as_example(prompt, its) for prompt, its in zip(prompts, ids, strict=True)])
        flat = [answer for its in ids for answer in its]
        read = any(r.reads_text for r in self.rewards)
        texts = [self.renderer.answer(answer, c.stop) for answer in flat] if read else []
        samples = Samples(groups, [self.prompts[i] for i in which for _ in range(n)], texts, flat)
        scores = [its.reshape(-1, n) for its in scored(self.rewards, samples)]
        each = zip(which, prompts, answers, zip(*scores, strict=True), strict=True)
        return groups, [ScoredGroup(i, prompt, several, list(its)) for i, prompt, several, its in each]

    def say_unscored(self, rewards: np.ndarray, drawn: Sequence[DrawnGroup]) -> None:
        """Say once that answers have no score (TRL warns in each batch); `unscored` is in every log line."""
        unscored = np.flatnonzero(np.isnan(rewards))
        if len(unscored) and not self.said:
            self.said = True
            where = self.prompts[drawn[unscored[0] // self.group_size].group.which].where
            found = f"{len(unscored):,} of {len(rewards):,} answers got no score from any reward (None)"
            say(f"{found}, the first to {where}: nothing is learnt from them")

    def own_figures(self, by_name: Mapping[str, np.ndarray]) -> dict[str, float]:
        """What there is to log of settings that act between steps."""
        c, found = self.config, {}
        if c.kl_target is not None:
            found["kl_coef"] = self.kl.coef
        if c.max_approx_kl is not None:
            found["left_early"] = self.left_early
        if self.resample:
            found["resampled"] = self.resampled
        if c.reward_deviations is not None:
            found["reward/spread"] = float(members(self.rewards, by_name).std(0).mean())
        for moving in self.moving:
            found |= moving.figures()
        return found
