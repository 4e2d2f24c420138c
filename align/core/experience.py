"""Experience of RL stages as a step source: sample, score, measure log-probs, then yield epochs x minibatches of optimizer steps.

It knows no algorithm: what a token was worth is said by the stage's own advantage function, which gets a whole `Rollout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.core import forward
from align.core.load import STEP_ZERO_TOLERANCE
from align.core.metrics import batches
from align.core.pack import Batch
from align.core.rewards import Reward, Samples, total
from align.core.roles import Roles
from align.core.rollout import Sampler, as_example
from align.core.source import Step, make_step, rank_and_world
from align.data.examples import Example
from align.data.records import Prompt
from align.data.render import Renderer
from align.errors import AlignError

NO_VARIANCE = 1e-6
"""Scores of a group that lie closer together than this are equal: what is left is rounding."""


@dataclass(frozen=True)
class Rollout:
    """S samples, one after the other; `group_size` neighbours answer one prompt."""

    scores: np.ndarray
    """(S,): what the rewards gave, weighted and added up, less missing_eos_penalty."""
    columns: Mapping[str, Sequence[np.ndarray]]
    """Per sample (its tokens,): old_logprobs, ref_logprobs, entropy, and what else the stage measures."""
    group_size: int

    @property
    def kl(self) -> list[np.ndarray]:
        """Per sample (its tokens,): log-prob under the policy less that under the reference, the k1 estimator of KL(policy || reference)
        (http://joschu.net/blog/kl-approx.html)."""
        return [p - r for p, r in zip(self.columns["old_logprobs"], self.columns["ref_logprobs"], strict=True)]

    @property
    def without_variance(self) -> np.ndarray:
        """(G,): groups whose samples all have the same score, which says nothing about which is better."""
        return np.ptp(self.scores.reshape(-1, self.group_size), axis=1) < NO_VARIANCE


@dataclass(frozen=True)
class Advantages:
    """What a stage makes of a rollout."""

    columns: Mapping[str, Sequence[np.ndarray]]
    """Per sample (its tokens,), for the loss: advantages, and whatever else it reads beside old_logprobs."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    dropped: np.ndarray | None = None
    """(G,): groups that no loss is taken over."""


def nothing(roles: Roles, batch: Batch) -> dict[str, Tensor]:
    """No measurements beside those of every stage."""
    return {}


class Rollouts:
    """Optimizer steps over sampled answers. State is saved between rollouts only, where it is small: position and running figures.

    Args:
        prompts, prompt_ids: what is answered, as records for judges and as token ids.
        config: of the stage; the fields of `align.rl.RLConfig` are read.
        advantages: the algorithm.
        epochs: passes over each rollout.
        measure: what to measure of every sample beside log-probs and entropies, (T,) by name.
        keep: fills groups with what enters the first layer that trains (`core.keep`), or leaves them as they are.
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
        measure: Callable[[Roles, Batch], Mapping[str, Tensor]] = nothing,
        keep: Callable[[Sequence[Example]], list[Example]] = list,
    ):
        self.roles, self.prompts, self.prompt_ids, self.renderer, self.config = roles, prompts, prompt_ids, renderer, config
        self.rewards, self.advantages, self.epochs, self.group_size, self.measure_also = rewards, advantages, epochs, group_size, measure
        self.keep = keep
        self.sampler = Sampler(roles, "policy", renderer.stop_ids, renderer.tokenizer.pad_token_id)
        self.groups = config.rollout_size // group_size
        self.per_rollout = epochs * (config.rollout_size // config.batch_size)
        wanted = max(1, round(len(prompt_ids) * config.epochs / self.groups))
        self.rollouts = wanted if config.max_steps is None else -(-config.max_steps // self.per_rollout)
        self.steps = self.rollouts * self.per_rollout
        self.done = 0
        self.left_in_rollout = 0
        self.measured: dict[str, float] = {}

    # ---- what the trainer asks for -------------------------------------------------------------------------------------------------

    @property
    def at_boundary(self) -> bool:
        """Whether a checkpoint can be taken: all steps of the current rollout have been taken."""
        return self.left_in_rollout == 0

    def metrics(self) -> dict[str, float]:
        """Figures of the current rollout, for the log."""
        return self.measured

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]

    def __iter__(self) -> Iterator[Step]:
        c = self.config
        at_a_time = c.batch_size // self.group_size
        while self.done < self.rollouts:
            examples, dropped = self.collect(self.done)
            self.done += 1
            self.left_in_rollout = self.per_rollout
            for epoch in range(self.epochs):
                order = np.random.default_rng([c.seed, self.done, epoch]).permutation(len(examples))
                for start in range(0, len(order), at_a_time):
                    self.left_in_rollout -= 1
                    chosen = order[start : start + at_a_time]
                    # a step of nothing but dropped groups is taken over them all the same: their advantages are 0
                    kept = chosen if dropped[chosen].all() else chosen[~dropped[chosen]]
                    yield make_step([examples[i] for i in kept], c.tokens_per_microbatch)

    # ---- one rollout ---------------------------------------------------------------------------------------------------------------

    def collect(self, index: int) -> tuple[list[Example], np.ndarray]:
        """Sample one rollout and attach to it what the loss reads: one example per group, and which of them are dropped.

        Every rank samples and scores its own share of the prompts, by its own draws; what all ranks made is then exchanged, so that
        advantages are over the whole rollout. What is drawn depends on seed, rollout and rank, and not on what was drawn before.
        """
        c = self.config
        rank, world = rank_and_world()
        self.sampler.refresh()
        mine = self.order(index)[rank::world]
        rows = [self.prompt_ids[i] for i in mine]
        torch.manual_seed(int(np.random.SeedSequence([c.seed, index, rank]).generate_state(1, np.uint64)[0]))
        answers = self.sampler(rows, n=self.group_size, max_new_tokens=c.max_new_tokens, temperature=c.temperature)
        groups = self.keep([as_example(p, a) for p, a in zip(rows, answers, strict=True)])
        texts = [self.renderer.answer(a) for several in answers for a in several] if any(r.reads_text for r in self.rewards) else []
        samples = Samples(groups, [self.prompts[i] for i in mine for _ in range(self.group_size)], texts)
        scores = [r.score(samples).reshape(-1, self.group_size) for r in self.rewards]
        everyone = gather([(p, a, [s[i] for s in scores]) for i, (p, a) in enumerate(zip(rows, answers, strict=True))])
        examples = groups if world == 1 else self.keep([as_example(p, a) for p, a, _ in everyone])
        by_name = {r.name: np.concatenate([s[i] for _, _, s in everyone]) for i, r in enumerate(self.rewards)}
        rewards = total(self.rewards, by_name)
        ended = np.array([a[-1] in self.sampler.stop_ids for _, several, _ in everyone for a in several])
        rollout = Rollout(rewards - c.missing_eos_penalty * ~ended, self.measure(examples), self.group_size)
        self.check_start(rollout.kl)
        advantages = self.advantages(rollout)
        self.measured = {**self.figures(rollout, rewards, by_name, ended), **advantages.metrics}
        dropped = np.zeros(len(examples), dtype=bool) if advantages.dropped is None else advantages.dropped
        return self.attach(examples, {"old_logprobs": rollout.columns["old_logprobs"], **advantages.columns}), dropped

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
        """Per sample, at the positions of its answer: policy and reference log-probs, entropies, and what the stage measures."""
        roles, c, n = self.roles, self.config, self.group_size
        out: dict[str, list[np.ndarray]] = {}
        for indices, batch in batches(examples, c.tokens_per_microbatch, roles.base.device):
            with roles.use("policy"):
                hidden = roles.hidden(batch)
                found = {
                    "old_logprobs": forward.logprobs(hidden, roles.head, batch, c.temperature),
                    "entropy": forward.entropies(hidden, roles.head, batch, c.temperature),
                }
            found["ref_logprobs"] = roles.logprobs("reference", batch, c.temperature)
            found.update(self.measure_also(roles, batch))
            samples = [i * n + j for i in indices for j in range(n)]
            masks = batch.split(batch.loss_mask)
            for name, values in found.items():
                column = out.setdefault(name, [np.empty(0)] * (n * len(examples)))
                for i, piece, mask in zip(samples, batch.split(values), masks, strict=True):
                    column[i] = piece[mask].float().cpu().numpy()
        return out

    def check_start(self, kl: Sequence[np.ndarray]) -> None:
        """Before the first step the policy is its reference. Raises: AlignError where they differ."""
        worst = max(float(np.abs(k).sum()) for k in kl)
        if self.done == 0 and worst > STEP_ZERO_TOLERANCE[self.roles.base.dtype]:
            raise AlignError(f"before the first step policy and reference differ by {worst:.2g} nats on a sample; they must be equal.")

    def figures(self, rollout: Rollout, rewards: np.ndarray, by_name: Mapping[str, np.ndarray], ended: np.ndarray) -> dict[str, float]:
        """What is logged of every rollout; each reward by its name where there are several."""
        kl = rollout.kl
        found = {
            "reward/mean": float(rewards.mean()),
            "kl": float(np.mean([k.sum() for k in kl])),
            "entropy": float(np.concatenate(rollout.columns["entropy"]).mean()),
            "eos_rate": float(ended.mean()),
            "length": float(np.mean([len(k) for k in kl])),
        }
        if len(by_name) > 1:
            found |= {f"reward/{name}": float(scores.mean()) for name, scores in by_name.items()}
        if self.group_size > 1:
            found["groups_without_variance"] = float(rollout.without_variance.mean())
        return found

    def attach(self, examples: list[Example], columns: Mapping[str, Sequence[np.ndarray]]) -> list[Example]:
        """The examples with columns that hold one array per sample."""
        n = self.group_size
        # a branch's last position predicts nothing, hence the zero at the end
        padded = {name: [np.append(values, 0.0) for values in column] for name, column in columns.items()}
        return [
            replace(e, columns={name: tuple(column[i * n : (i + 1) * n]) for name, column in padded.items()})
            for i, e in enumerate(examples)
        ]


def gather(rows: list[Any]) -> list[Any]:
    """Every rank's rows, in the order of the ranks."""
    world = rank_and_world()[1]
    if world == 1:
        return rows
    everyone: list[list[Any]] = [[] for _ in range(world)]
    torch.distributed.all_gather_object(everyone, rows)
    return [row for part in everyone for row in part]
