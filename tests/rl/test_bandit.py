"""One step, few tokens, a reward of one token: what RL should do is known exactly.

The policy that maximises E[r] - beta KL(policy || reference) is the reference x exp(r / beta), normalised (arXiv
2305.18290, eq. 4), and the gradient of what is maximised is a sum over the vocabulary. No whitening, clipping, value
baseline or entropy bonus.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from align import grpo, rloo
from align.adapters.targets import lora_config
from align.data.records import Prompt
from align.losses import loss, policy
from align.models.base import prepare
from align.models.roles import Roles
from align.packed.pack import Batch, pack
from align.rl import advantages
from align.rl.advantages import Advantages, Rollout
from align.rl.collect import Rollouts
from align.rl.rewards import Reward, Samples
from align.sampling.rollout import as_example
from align.training.steps import make_step
from tests.models.models import SIZES as SHAPE
from tests.models.models import randomise, settings

VOCAB = 8
PROMPT = [5, 6, 7]
BETA = 0.7
NEVER = 1e9
"""A clip that is never reached."""
SIZES: dict[str, Any] = dict(reward="none", max_new_tokens=1, missing_eos_penalty=0.0, tokens_per_microbatch=1 << 16)


def make_roles() -> Roles:
    """Policy and reference, which differ, on a model of few tokens, none of which is rare."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | {"vocab_size": VOCAB})).double()
    model.lm_head.weight.data *= 8  # so that normed hidden states can reach the optimum
    roles = Roles(prepare(model))
    for i, name in enumerate(("policy", "reference")):
        roles.add_adapter(name, lora_config(4, 8, "all-linear", 0.0, roles.base))
        randomise(roles, name, seed=i)
        roles.assign(name, [name])
    roles.train_only("policy")
    return roles


def score(samples: Samples) -> np.ndarray:
    """The reward of each sample's one token: a fixed number in [-1, 1]."""
    return rewards()[[s[-1] for e in samples.groups for s in e.sequences]].numpy()


def rewards() -> Tensor:
    return torch.cos(torch.arange(VOCAB, dtype=torch.float64))


def reinforce(rollout: Rollout, config: Any) -> Advantages:
    """No baseline at all: reward less the price of KL."""
    per_token = advantages.rewards_per_token(rollout.scores, rollout.price_of_kl(config.kl_estimator))
    return Advantages({"advantages": advantages.rewards_to_go(per_token)})


def reinforce_loss(roles: Roles, batch: Batch, config: Any) -> loss.Loss:
    logprobs = roles.logprobs("policy", batch, config.temperature)
    return policy.ppo_policy(
        logprobs, batch.columns["old_logprobs"], batch.columns["advantages"], batch.loss_mask, NEVER
    )


ALGORITHMS: dict[str, Any] = {
    "reinforce": (rloo.Config, {}, reinforce, reinforce_loss),
    "k3": (rloo.Config, {"kl_estimator": "k3"}, reinforce, reinforce_loss),
    "rloo": (rloo.Config, {"clip": NEVER}, rloo.advantages, rloo.loss),
    "grpo": (
        grpo.Config,
        {"clip": NEVER, "scale_rewards": False},
        grpo.advantages,
        lambda r, b, c: grpo.loss(r, b, c, c.kl_coef),
    ),
}


def source(roles: Roles, algorithm: str, size: int, **changes: Any) -> tuple[Rollouts, Any, Any]:
    """(rollouts of one group of `size` samples, loss, settings)."""
    kind, more, advantage, loss = ALGORITHMS[algorithm]
    config = settings(
        kind, **SIZES | more | {"rollout_size": size, "batch_size": size, "group_size": size, "kl_coef": BETA} | changes
    )
    renderer: Any = SimpleNamespace(stop_ids=(2,), tokenizer=SimpleNamespace(pad_token_id=0))
    made = Rollouts(
        roles,
        [Prompt(())],
        [PROMPT],
        renderer,
        config,
        rewards=[Reward("token", 1.0, score)],
        advantages=lambda r: advantage(r, config),
        epochs=1,
        group_size=size,
    )
    made.done = 1  # a policy that has left its reference
    return made, loss, config


def distribution(roles: Roles, role: str) -> Tensor:
    """(V,): log-probs of the token after the prompt."""
    batch = pack([as_example(PROMPT, [[3]])])
    return torch.log_softmax(roles.head(roles.hidden_as(role, batch)[-2]), -1)


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def exact_gradient(roles: Roles, beta: float = BETA) -> Tensor:
    """Of minus E[r] - beta KL, by the sum over the vocabulary."""
    logp, ref = distribution(roles, "policy"), distribution(roles, "reference").detach()
    objective = (logp.exp() * (rewards() - beta * (logp - ref))).sum()
    return -flat(torch.autograd.grad(objective, list(roles.trainable().values())))


def sampled_gradient(roles: Roles, rollouts: Rollouts, loss: Any, config: Any, index: int) -> Tensor:
    examples, _ = rollouts.collect(index)
    step = make_step(examples, 1 << 16)
    (batch,) = step.batches
    return flat(torch.autograd.grad(loss(roles, batch, config).scalar(step.counts), list(roles.trainable().values())))


def z_scores(gradients: Tensor, truth: Tensor) -> np.ndarray:
    """How many standard errors the mean of `gradients (N, P)` is from `truth`, along it and along 20 random
    directions."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.cat(
        [truth[None] / truth.norm(), torch.randn(20, truth.numel(), generator=draw, dtype=truth.dtype)]
    )
    along = gradients @ directions.T
    errors = along.std(0) / len(gradients) ** 0.5
    return ((along.mean(0) - directions @ truth) / errors).numpy()


def grpo_gradient(roles: Roles, beta: float, size: int) -> Tensor:
    """What GRPO's loss has as its mean: a baseline that holds the answer's own score shrinks the gradient of E[r] by 1
    - 1/N, and the gradient of k3 is that of KL(reference || policy)."""
    logp, ref = distribution(roles, "policy"), distribution(roles, "reference").detach()
    objective = (1 - 1 / size) * (logp.exp() * rewards()).sum() - beta * (ref.exp() * (ref - logp)).sum()
    return -flat(torch.autograd.grad(objective, list(roles.trainable().values())))


def k3_gradient(roles: Roles, beta: float) -> Tensor:
    """k3 as a price in the reward: its policy gradient is that of KL(policy || reference) - KL(reference || policy)."""
    logp, ref = distribution(roles, "policy"), distribution(roles, "reference").detach()
    forward, backward = (logp.exp() * (logp - ref)).sum(), (ref.exp() * (ref - logp)).sum()
    objective = (logp.exp() * rewards()).sum() - beta * (forward - backward)
    return -flat(torch.autograd.grad(objective, list(roles.trainable().values())))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_first_gradient_is_the_exact_one_within_sampling_error(algorithm: str) -> None:
    """60 rollouts of 64 samples: along the exact gradient and 20 other directions no mean is 4 standard errors off."""
    roles = make_roles()
    rollouts, loss, config = source(roles, algorithm, 64)
    found = torch.stack([sampled_gradient(roles, rollouts, loss, config, i) for i in range(60)])

    def exact(beta: float) -> Tensor:
        if algorithm == "k3":
            return k3_gradient(roles, beta)
        return grpo_gradient(roles, beta, 64) if algorithm == "grpo" else exact_gradient(roles, beta)

    assert np.abs(z_scores(found, exact(BETA))).max() < 4
    # Negative controls: another price of KL, and a gradient that is too large by half.
    assert np.abs(z_scores(found, exact(2 * BETA))).max() > 6
    assert np.abs(z_scores(1.5 * found, exact(BETA))).max() > 6
    if algorithm == "k3":
        assert np.abs(z_scores(found, exact_gradient(roles, BETA))).max() > 6  # it is not the gradient of KL


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["reinforce", "rloo"])
def test_it_converges_to_the_reference_tilted_by_the_reward(algorithm: str) -> None:
    """Within 0.02 total variation of reference x exp(r / beta); the start is further off, and so is the optimum of
    another beta."""
    roles = make_roles()
    for p, r in zip(roles.adapter_parameters("policy"), roles.adapter_parameters("reference"), strict=True):
        p.data.copy_(r.data)
    with torch.no_grad():
        ref = distribution(roles, "reference")
    best, other = (torch.softmax(ref + rewards() / beta, -1) for beta in (BETA, 2 * BETA))

    def distance(to: Tensor) -> float:
        with torch.no_grad():
            return 0.5 * (distribution(roles, "policy").exp() - to).abs().sum().item()

    assert distance(best) > 0.1
    rollouts, loss, config = source(roles, algorithm, 128)
    parameters = list(roles.trainable().values())
    optimizer, steps = torch.optim.Adam(parameters, lr=0.005), 100
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)
    for i in range(steps):
        gradient = sampled_gradient(roles, rollouts, loss, config, i)
        for p, g in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
            p.grad = g.view_as(p).to(p.dtype)
        optimizer.step()
        rollouts.sampler.forget()
        schedule.step()
    assert distance(best) < 0.02 < distance(other)
