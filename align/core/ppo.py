"""The rollouts of PPO as a step source: sample, score, work out advantages, then yield epochs x minibatches of optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from align.core import forward
from align.core.load import STEP_ZERO_TOLERANCE
from align.core.metrics import batches, scores
from align.core.roles import Roles
from align.core.rollout import Sampler, as_example
from align.core.source import Step, make_step, rank_and_world
from align.data.examples import Example
from align.data.render import Renderer
from align.errors import AlignError


class Rollouts:
    """Optimizer steps of PPO. State is saved between rollouts only, where it is small: position and running figures."""

    def __init__(self, roles: Roles, prompts: Sequence[Sequence[int]], renderer: Renderer, config: Any):
        self.roles, self.prompts, self.config = roles, prompts, config
        self.stop_ids = set(renderer.stop_ids)
        self.sampler = Sampler(roles, "policy", renderer.stop_ids, renderer.tokenizer.pad_token_id)
        self.per_rollout = config.ppo_epochs * (config.rollout_size // config.batch_size)
        wanted = max(1, round(len(prompts) * config.epochs / config.rollout_size))
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
        while self.done < self.rollouts:
            examples = self.collect(self.done)
            self.done += 1
            self.left_in_rollout = self.per_rollout
            for epoch in range(c.ppo_epochs):
                order = np.random.default_rng([c.seed, self.done, epoch]).permutation(len(examples))
                for start in range(0, len(order), c.batch_size):
                    self.left_in_rollout -= 1
                    yield make_step([examples[i] for i in order[start : start + c.batch_size]], c.tokens_per_microbatch)

    # ---- one rollout ---------------------------------------------------------------------------------------------------------------

    def collect(self, index: int) -> list[Example]:
        """Sample one rollout and attach log-probs, values, advantages and returns to it.

        Every rank samples its own share of the prompts, by its own draws; what all ranks made is then exchanged, so that whitening is over
        the whole rollout. What is drawn depends on seed, rollout and rank, and not on what was drawn before.
        """
        c, roles = self.config, self.roles
        rows = [self.prompts[i] for i in self.order(index)]
        rank, world = rank_and_world()
        self.sampler.refresh()
        mine = rows[rank::world]
        torch.manual_seed(int(np.random.SeedSequence([c.seed, index, rank]).generate_state(1, np.uint64)[0]))
        samples = self.sampler(mine, n=1, max_new_tokens=c.max_new_tokens, temperature=c.temperature)
        everyone = gather([(p, s[0]) for p, s in zip(mine, samples, strict=True)])
        examples = [as_example(p, [s]) for p, s in everyone]
        rewards = scores(roles, "reward", examples, c.tokens_per_microbatch)
        ended = np.array([s[-1] in self.stop_ids for _, s in everyone])
        kept = rewards - c.missing_eos_penalty * ~ended
        columns = self.measure(examples)
        return self.advantages(examples, columns, kept, rewards, ended)

    def order(self, index: int) -> list[int]:
        """Which prompts the rollout takes: seeded passes over all of them, one after the other."""
        n, size = len(self.prompts), self.config.rollout_size
        out: list[int] = []
        for k in range(index * size, (index + 1) * size):
            lap, place = divmod(k, n)
            if not out or place == 0:
                order = np.random.default_rng([self.config.seed, lap]).permutation(n)
            out.append(int(order[place]))
        return out

    @torch.no_grad()
    def measure(self, examples: list[Example]) -> dict[str, list[np.ndarray]]:
        """Per sample: policy and reference log-probs, values and entropies at the positions of its answer."""
        roles, c = self.roles, self.config
        out: dict[str, list[np.ndarray]] = {
            n: [np.empty(0)] * len(examples) for n in ("old_logprobs", "ref_logprobs", "old_values", "entropy")
        }
        for indices, batch in batches(examples, c.tokens_per_microbatch, roles.base.device):
            with roles.use("policy"):
                hidden = roles.hidden(batch)
                found = {
                    "old_logprobs": forward.logprobs(hidden, roles.head, batch, c.temperature),
                    "entropy": forward.entropies(hidden, roles.head, batch, c.temperature),
                }
            found["ref_logprobs"] = roles.logprobs("reference", batch, c.temperature)
            found["old_values"] = roles.values("value", batch) * batch.loss_mask
            for name, values in found.items():
                for i, piece, mask in zip(indices, batch.split(values), batch.split(batch.loss_mask), strict=True):
                    out[name][i] = piece[mask].float().cpu().numpy()
        return out

    def advantages(
        self, examples: list[Example], columns: dict[str, list[np.ndarray]], kept: np.ndarray, rewards: np.ndarray, ended: np.ndarray
    ) -> list[Example]:
        """Rewards per token, GAE, whitening over the whole rollout; and the figures of this rollout."""
        c = self.config
        kl = [p - r for p, r in zip(columns["old_logprobs"], columns["ref_logprobs"], strict=True)]
        if self.done == 0:
            worst = max(float(np.abs(k).sum()) for k in kl)
            if worst > STEP_ZERO_TOLERANCE[self.roles.base.dtype]:
                raise AlignError(f"before the first step policy and reference differ by {worst:.2g} nats on a sample; they must be equal.")
        per_token = []
        for penalty, score in zip(kl, kept, strict=True):
            reward = -c.kl_coef * penalty  # per-token KL (N+ details, 3.6)
            reward[-1] += score  # the score is credited where the last token is chosen
            per_token.append(reward)
        if c.whiten_rewards:
            deviation = np.concatenate(per_token).std() + 1e-8
            per_token = [r / deviation for r in per_token]
        gains = [gae(r, v, c.gamma, c.gae_lambda) for r, v in zip(per_token, columns["old_values"], strict=True)]
        returns = [g + v for g, v in zip(gains, columns["old_values"], strict=True)]
        flat = np.concatenate(gains)
        mean, deviation = flat.mean(), flat.std() + 1e-8  # advantage whitening (N+ details, 3.8)
        flat_returns, flat_values = np.concatenate(returns), np.concatenate(columns["old_values"])
        self.measured = {
            "reward/mean": float(rewards.mean()),
            "kl": float(np.mean([k.sum() for k in kl])),
            "entropy": float(np.concatenate(columns["entropy"]).mean()),
            "eos_rate": float(ended.mean()),
            "length": float(np.mean([len(k) for k in kl])),
            "value/explained_variance": float(1 - (flat_returns - flat_values).var() / max(flat_returns.var(), 1e-8)),
        }
        out = []
        for i, example in enumerate(examples):
            table = {
                "old_logprobs": columns["old_logprobs"][i],
                "old_values": columns["old_values"][i],
                "advantages": (gains[i] - mean) / deviation,
                "returns": returns[i],
            }
            # a branch's last position predicts nothing, hence the zero at the end
            padded = {name: (np.append(values, 0.0),) for name, values in table.items()}
            out.append(Example(example.sequences, example.supervised, example.shared, padded))
        return out


def gae(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """Generalised advantage estimates of one sample; the episode ends after its last token (arXiv 1506.02438, eq. 16). All (tokens,)."""
    out = np.zeros_like(rewards)
    running, following = 0.0, 0.0
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + gamma * following - values[t]
        running = delta + gamma * lam * running
        out[t], following = running, values[t]
    return out


def gather(rows: list[Any]) -> list[Any]:
    """Every rank's rows, in the order of the ranks."""
    world = rank_and_world()[1]
    if world == 1:
        return rows
    everyone: list[list[Any]] = [[] for _ in range(world)]
    torch.distributed.all_gather_object(everyone, rows)
    return [row for part in everyone for row in part]
