"""Experience of RL stages as a step source: sample, score, measure log-probs, then yield epochs x minibatches of
optimizer steps.

It knows no algorithm: what a token was worth is said by the stage's own advantage function, which gets a whole
`Rollout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.data import steps
from align.data.examples import Example
from align.data.records import Prompt
from align.data.rendering.render import Renderer
from align.ground.terminal import say
from align.judges import Judge
from align.models.process import trim_heap
from align.models.roles import Roles
from align.packed import forward
from align.packed.batches import batches
from align.packed.pack import Batch
from align.rl import saved
from align.rl.advantages import Advantages, Rollout
from align.rl.figures import figures
from align.rl.kl import Price
from align.rl.observer import Observer
from align.rl.rewards import Reward, Samples, scored, total
from align.rl.shaping import Moments, shaped
from align.sampling.rollout import as_example, sampler
from align.training.processes import rank_and_world
from align.training.start import assert_starts_at_reference
from align.training.steps import Step, make_step


def nothing(roles: Roles, batch: Batch, hidden: Tensor) -> dict[str, Tensor]:
    """No measurements beside those of every stage."""
    return {}


class Rollouts:
    """Optimizer steps over sampled answers.

    A rollout is left for the next one before its steps are through where the policy has moved further than
    `max_approx_kl` in the last of them; steps are counted all the same, so that the run takes as many as were asked
    for.

    Args:
        prompts, prompt_ids: what is answered, as records for judges and as token ids.
        config: of the stage; the fields of `align.rl.settings.RLConfig` are read.
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
        config: Any,
        *,
        rewards: Sequence[Reward],
        advantages: Callable[[Rollout], Advantages],
        epochs: int,
        group_size: int = 1,
        measure: Callable[[Roles, Batch, Tensor], Mapping[str, Tensor]] = nothing,
        keep: Callable[[Sequence[Example]], list[Example]] = list,
        begin: Callable[[Mapping[str, float], float], None] | None = None,
    ):
        self.roles, self.prompts, self.prompt_ids, self.renderer, self.config = (
            roles,
            prompts,
            prompt_ids,
            renderer,
            config,
        )
        self.rewards, self.advantages, self.epochs, self.group_size, self.measure_also = (
            rewards,
            advantages,
            epochs,
            group_size,
            measure,
        )
        self.keep, self.begin = keep, begin
        self.begun: tuple[dict[str, float], float] | None = None
        self.observers: Sequence[Observer] = ()
        self.sampler = sampler(roles, "policy", renderer, config.stop)
        self.groups = config.rollout_size // group_size
        self.steps, self.rollouts, self.per_rollout = steps.reinforced(len(prompt_ids), config, epochs, group_size)
        self.kl = Price(config.kl_coef, config.kl_target, config.kl_horizon)
        self.moments = Moments()
        # steps given out, rollouts begun, and those left before their end
        self.taken, self.done, self.left_early = 0, 0, 0
        self.place = self.per_rollout  # steps given out of the rollout in progress
        self.examples: list[Example] = []
        self.dropped = np.zeros(0, dtype=bool)
        self.measured: dict[str, float] = {}
        self.said = False

    # ---- what the trainer asks for -----------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Figures of the current rollout, for the log."""
        return {**self.measured, **{name: value for o in self.observers for name, value in o.metrics().items()}}

    def feedback(self, means: Mapping[str, float]) -> None:
        """Leave the rollout where the last step's mean `approx_kl` is above `max_approx_kl` (target_kl of Spinning Up
        and CleanRL)."""
        if self.place == 1:
            for observer in self.observers:
                observer.first_step(means)
        limit = self.config.max_approx_kl
        if limit is not None and means.get("approx_kl", 0.0) > limit:
            self.left_early += self.place < self.per_rollout
            self.place = self.per_rollout

    def state_dict(self) -> dict[str, Any]:
        in_progress = self.place < self.per_rollout
        return {
            "counts": {name: getattr(self, name) for name in COUNTS},
            "kl_coef": self.kl.coef,
            "moments": self.moments.state_dict(),
            "measured": dict(self.measured),
            "examples": saved.dump(self.examples if in_progress else []),
            "dropped": self.dropped.tolist() if in_progress else [],
            "begun": self.begun,
            "observers": [o.state_dict() for o in self.observers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in COUNTS:
            setattr(self, name, state["counts"][name])
        self.kl.coef, self.moments, self.measured = state["kl_coef"], Moments(**state["moments"]), state["measured"]
        self.examples, self.dropped = (
            self.keep(saved.restore(state["examples"])),
            np.array(state["dropped"], dtype=bool),
        )
        self.begun = state["begun"]
        if self.begin and self.begun:
            self.begin(*self.begun)
        for observer, its in zip(self.observers, state["observers"], strict=True):
            observer.load_state_dict(its)

    def __iter__(self) -> Iterator[Step]:
        while self.taken < self.steps:
            if self.place == self.per_rollout:
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
        c = self.config
        rank, world = rank_and_world()
        mine = self.order(index)[rank::world]
        rows = [self.prompt_ids[i] for i in mine]
        torch.manual_seed(int(np.random.SeedSequence([c.seed, index, rank]).generate_state(1, np.uint64)[0]))
        answers = self.sampler(rows, n=self.group_size, max_new_tokens=c.max_new_tokens, temperature=c.temperature)
        groups = self.keep([as_example(p, [a.ids for a in several]) for p, several in zip(rows, answers, strict=True)])
        reads_text = any(isinstance(r.score, Judge) for r in self.rewards)
        texts = [self.renderer.answer(a.ids, c.stop) for several in answers for a in several] if reads_text else []
        ids = [a.ids for several in answers for a in several]
        samples = Samples(groups, [self.prompts[i] for i in mine for _ in range(self.group_size)], texts, ids)
        scores = [s.reshape(-1, self.group_size) for s in scored(self.rewards, samples)]
        everyone = gather(
            [(p, several, [s[i] for s in scores]) for i, (p, several) in enumerate(zip(rows, answers, strict=True))]
        )
        drawn = [a for _, several, _ in everyone for a in several]
        examples = (
            groups if world == 1 else self.keep([as_example(p, [a.ids for a in several]) for p, several, _ in everyone])
        )
        by_name = {r.name: np.concatenate([s[i] for _, _, s in everyone]) for i, r in enumerate(self.rewards)}
        rewards = total(self.rewards, by_name)
        self.say_unscored(rewards, [i for r in range(world) for i in self.order(index)[r::world]])
        ended = np.array([a.ended for a in drawn])
        worth = shaped(rewards, np.array([len(a.ids) for a in drawn]), ended, c, self.moments)
        if self.begin and self.done == 0:
            self.begun = (
                {name: float(np.nanmean(values)) for name, values in by_name.items()},
                float(np.nanstd(rewards)),
            )
            self.begin(*self.begun)
        rollout = Rollout(worth, self.measure(examples), self.group_size, self.kl.coef)
        if self.done == 0:
            whole = self.attach(examples, {"ref_logprobs": rollout.columns["ref_logprobs"]})
            assert_starts_at_reference(self.roles, whole, c.tokens_per_microbatch, temperature=c.temperature)
        advantages = self.advantages(rollout)
        self.measured = {**figures(rollout, rewards, by_name, drawn), **self.own_figures(), **advantages.metrics}
        dropped = np.zeros(len(examples), dtype=bool) if advantages.dropped is None else advantages.dropped
        return self.attach(examples, {"old_logprobs": rollout.columns["old_logprobs"], **advantages.columns}), dropped

    def say_unscored(self, rewards: np.ndarray, order: Sequence[int]) -> None:
        """Say once that answers have no score, with the first one's prompt (TRL warns in each batch); `unscored` is in
        every log line."""
        unscored = np.flatnonzero(np.isnan(rewards))
        if len(unscored) and not self.said:
            self.said, where = True, self.prompts[order[unscored[0] // self.group_size]].where
            found = (
                f"{len(unscored):,} of {len(rewards):,} answers got no score from any reward (None), the first "
                f"to {where}"
            )
            say(f"{found}: nothing is learnt from them")

    def order(self, index: int) -> list[int]:
        """Which prompts the rollout takes: seeded passes over all of them, one after the other."""
        n = len(self.prompt_ids)
        out: list[int] = []
        for k in range(index * self.groups, (index + 1) * self.groups):
            lap, place = divmod(k, n)
            if not out or place == 0:
                order = np.random.default_rng([self.config.seed, lap]).permutation(n)
            out.append(int(order[place]))
        return out

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
        steered = {"kl_coef": self.kl.coef} if self.config.kl_target is not None else {}
        return steered | ({"left_early": self.left_early} if self.config.max_approx_kl is not None else {})

    def attach(self, examples: list[Example], columns: Mapping[str, Sequence[np.ndarray]]) -> list[Example]:
        """The examples with columns that hold one array per sample."""
        n = self.group_size
        # a branch's last position predicts nothing, hence the zero at the end
        padded = {
            name: [np.append(values, 0.0).astype(np.float32) for values in column] for name, column in columns.items()
        }
        return [
            replace(e, columns={name: tuple(column[i * n : (i + 1) * n]) for name, column in padded.items()})
            for i, e in enumerate(examples)
        ]


COUNTS = ("taken", "done", "left_early", "place")
"""The counts of `Rollouts` that are saved."""


def gather(rows: list[Any]) -> list[Any]:
    """Every rank's rows, in the order of the ranks."""
    world = rank_and_world()[1]
    if world == 1:
        return rows
    everyone: list[list[Any]] = [[] for _ in range(world)]
    torch.distributed.all_gather_object(everyone, rows)
    return [row for part in everyone for row in part]
