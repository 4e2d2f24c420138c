"""Losses, log-probs and advantages against values worked out by hand, textbook loops, and finite differences in
fp64."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import permutations
from types import SimpleNamespace
from typing import Any, Literal, cast, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from align import dpo
from align.losses import divergence, grpo, policy, preference, reward, tokens, value
from align.losses import loss as loss_module
from align.packed import vocabulary as heads
from align.packed.forward import logprobs_and_entropies
from align.packed.head import Head
from align.packed.pack import Batch, pack
from align.packed.vocabulary import row_logprobs, row_logprobs_and_entropies
from align.rl.advantages import gae
from align.sampling.rollout import as_example
from tests.models.models import VOCAB, make_base, make_roles, pair, pairs

LN2 = math.log(2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def fp64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def total(loss: loss_module.Loss, name: str) -> float:
    return loss.terms[name][0].item()


# ---- values by hand --------------------------------------------------------------------------------------------------


def test_next_token_by_hand() -> None:
    """Probabilities 1/2 and 1/4 cost ln 2 + ln 4; a position that does not count has log-prob 0 and costs nothing."""
    loss = tokens.next_token(fp64(-LN2, 0.0, -2 * LN2))
    assert total(loss, "nll") == pytest.approx(3 * LN2, rel=1e-12)
    assert loss.scalar({"tokens": 2}).item() == pytest.approx(1.5 * LN2, rel=1e-12)


def test_bradley_terry_by_hand() -> None:
    """Pair 0: 1.0 against 0.5; pair 1: -1 against 2 with a margin of 0.5, hence -log sigmoid(0.5) - log
    sigmoid(-3.5)."""
    loss = reward.bradley_terry(fp64(1.0, 0.5, -1.0, 2.0), fp64(0.0, 0.5), centre=0.01)
    assert total(loss, "bradley_terry") == pytest.approx(-math.log(sigmoid(0.5)) - math.log(sigmoid(-3.5)), rel=1e-12)
    assert total(loss, "centre") == pytest.approx(0.01 * (1.5**2 + 1.0**2), rel=1e-12)
    assert [float(x) for x in loss.metrics["accuracy"]] == [1, 2]
    assert loss.scalar({"pairs": 2}).item() == pytest.approx(
        (total(loss, "bradley_terry") + total(loss, "centre")) / 2, rel=1e-12
    )


def test_plackett_luce_by_hand() -> None:
    """Lists of three and of two. Of the first, best first: e^2 / (e^2 + e^1 + e^-1), then e^1 / (e^1 + e^-1); of two
    it is Bradley and Terry's, and the order of a list matters."""
    scores, places = fp64(2.0, 1.0, -1.0, 0.5, 1.5), fp64(0, 1, 2, 0, 1)
    loss = reward.plackett_luce(scores, places)
    e = math.exp
    by_hand = -math.log(e(2) / (e(2) + e(1) + e(-1)) * e(1) / (e(1) + e(-1))) - math.log(sigmoid(-1.0))
    assert total(loss, "plackett_luce") == pytest.approx(by_hand, rel=1e-12)
    assert [float(x) for x in loss.metrics["accuracy"]] == [3, 4]
    assert [float(x) for x in loss.metrics["margin"]] == [pytest.approx(1 + 3 + 2 - 1), 4]
    assert loss.scalar({"lists": 2}).item() == pytest.approx(by_hand / 2, rel=1e-12)
    pairs, margins = random(6, seed=7), torch.zeros(3, dtype=torch.float64)
    of_pairs = reward.plackett_luce(pairs, fp64(0, 1, 0, 1, 0, 1))
    assert total(of_pairs, "plackett_luce") == pytest.approx(
        total(reward.bradley_terry(pairs, margins), "bradley_terry"), rel=1e-12
    )
    turned = reward.plackett_luce(scores.flip(0)[[2, 3, 4, 0, 1]], places)  # negative control: the other way round
    assert abs(total(turned, "plackett_luce") - by_hand) > 1


def test_probabilities_of_all_orders_add_up() -> None:
    """Over the 24 orders of four answers exp(-loss) is a distribution; gradients pass gradcheck."""
    scores = random(4, seed=3)
    orders = [list(order) for order in permutations(range(4))]
    places = torch.arange(4.0).repeat(len(orders))
    each = [total(reward.plackett_luce(scores[order], torch.arange(4.0)), "plackett_luce") for order in orders]
    assert sum(map(math.exp, (-x for x in each))) == pytest.approx(1.0, rel=1e-12)
    together = reward.plackett_luce(torch.cat([scores[order] for order in orders]), places)
    assert total(together, "plackett_luce") == pytest.approx(sum(each), rel=1e-12)
    uneven = fp64(0, 1, 2, 3, 0, 1)
    given = random(6, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reward.plackett_luce(x, uneven).terms["plackett_luce"][0], given)


def dpo_of(
    policy: Tensor,
    reference: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
    pairwise: preference.Pairwise = preference.sigmoid,
) -> loss_module.Loss:
    """A loss of completions of one token each."""
    ratios, one = policy - reference, torch.ones(len(policy) // 2)
    return preference.dpo(
        preference.Pairs(ratios[0::2], ratios[1::2], one, one, beta, label_smoothing), {pairwise: 1.0}
    )


def test_dpo_by_hand() -> None:
    """beta 0.5; pair 0 gained 2 nats on chosen and lost 1 on rejected: margin 1.5. Pair 1 the other way round: margin
    -0.5."""
    policy, reference = fp64(-8.0, -11.0, -5.0, -4.0), fp64(-10.0, -10.0, -5.0, -5.0)
    loss = loss_module.combine(dpo_of(policy, reference, 0.5), preference.rewards(0.5 * (policy - reference)))
    assert total(loss, "dpo") == pytest.approx(-math.log(sigmoid(1.5)) - math.log(sigmoid(-0.5)), rel=1e-12)
    assert [loss.metrics[f"rewards/{n}"][0].item() for n in ("chosen", "rejected", "margins", "accuracies")] == [
        1.0,
        0.0,
        1.0,
        1,
    ]
    smooth = dpo_of(policy, reference, 0.5, 0.1)
    by_hand = sum(-0.9 * math.log(sigmoid(m)) - 0.1 * math.log(sigmoid(-m)) for m in (1.5, -0.5))
    assert total(smooth, "dpo") == pytest.approx(by_hand, rel=1e-12)


def test_hinge_by_hand() -> None:
    """The margins of above: 1.5 is beyond 1 and costs nothing, -0.5 costs 1.5; a tenth of the labels turned round costs
    1 + 1.5 and 1 - 0.5."""
    policy, reference = fp64(-8.0, -11.0, -5.0, -4.0), fp64(-10.0, -10.0, -5.0, -5.0)
    plain = dpo_of(policy, reference, 0.5, pairwise=preference.hinge)
    assert total(plain, "dpo") == pytest.approx(1.5, rel=1e-12)
    smooth = dpo_of(policy, reference, 0.5, 0.1, preference.hinge)
    assert total(smooth, "dpo") == pytest.approx(0.9 * 1.5 + 0.1 * (2.5 + 0.5), rel=1e-12)
    assert total(dpo_of(policy, reference, 0.5), "dpo") != total(plain, "dpo")


def test_a_new_loss_is_a_function_and_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/adding.md says: a square of what a margin lacks of 1, as SLiC's hinge is without the square."""

    def squared(pairs: preference.Pairs) -> Tensor:
        return (1 - pairs.margins).square()

    class Config(dpo.Config):
        loss: Literal["sigmoid", "squared"] = "squared"  # type: ignore[assignment]

    monkeypatch.setattr(preference, "squared", squared, raising=False)
    roles, batch = SimpleNamespace(), pack([pair(4, 2, 5), pair(3, 3, 2, seed=1)])
    logprobs = torch.where(batch.loss_mask, fp64(-1.0, -2.0, -3.0, -4.0, 0.0)[batch.segment_ids], 0.0)
    batch.columns["ref_logprobs"] = torch.zeros_like(logprobs)
    roles.logprobs = lambda role, batch: logprobs
    sums = batch.per_sequence(logprobs)
    found = dpo.loss(roles, batch, Config(base="none", data="none"))  # type: ignore[arg-type]
    assert total(found, "dpo") == pytest.approx(float((1 - 0.1 * (sums[0::2] - sums[1::2])).square().sum()))
    with pytest.raises(ValidationError):
        dpo.Config(base="none", data="none", loss="squared")  # type: ignore[arg-type]


def test_chosen_nll_by_hand() -> None:
    """Chosen completions of 2 and 3 tokens at log-probs -1 and -2 each: coef * (mean 1 + mean 2), whatever the rejected
    ones cost."""
    batch = pack([pair(4, 2, 5), pair(3, 3, 2, seed=1)])
    per_branch = [-1.0, -7.0, -2.0, -9.0]
    logprobs = torch.where(batch.loss_mask, fp64(*per_branch, 0.0)[batch.segment_ids], 0.0)
    assert total(preference.chosen_nll(logprobs, batch, 0.2), "chosen_nll") == pytest.approx(0.2 * 3.0, rel=1e-12)


def ppo_columns(n: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New and old log-probs (ratios on both sides of the clip), advantages of both signs, and a mask with holes."""
    old = -random(n, seed=1).abs()
    return old + random(n, seed=2, scale=0.4), old, random(n, seed=3), random(n, seed=4) > -0.5


def test_ppo_policy_equals_the_textbook_loop() -> None:
    new, old, advantages, mask = ppo_columns()
    by_hand, clipped = 0.0, 0
    for n, o, a, m in zip(new.tolist(), old.tolist(), advantages.tolist(), mask.tolist(), strict=True):
        if m:
            ratio = math.exp(n - o)
            by_hand -= min(ratio * a, max(min(ratio, 1.2), 0.8) * a)
            clipped += abs(ratio - 1) > 0.2
    loss = policy.ppo_policy(new, old, advantages, mask, clip=0.2)
    assert total(loss, "policy") == pytest.approx(by_hand, rel=1e-12)
    assert [float(x) for x in loss.metrics["clip_fraction"]] == [clipped, mask.sum()]
    assert clipped > 5  # else the clip would not have been tested
    # negative control
    assert abs(total(policy.ppo_policy(new, old, advantages, mask, clip=1e9), "policy") - by_hand) > 1e-2


def test_ppo_at_ratio_one_is_minus_the_advantages() -> None:
    _, old, advantages, mask = ppo_columns()
    loss = policy.ppo_policy(old, old, advantages, mask, clip=0.2)
    assert total(loss, "policy") == pytest.approx(-advantages[mask].sum().item(), rel=1e-12)
    assert loss.metrics["clip_fraction"][0] == 0 and loss.metrics["approx_kl"][0] == 0
    assert loss.metrics["ratio"][0] == mask.sum()


def test_ppo_value_equals_the_textbook_loop() -> None:
    new, old, returns, mask = ppo_columns()
    by_hand = 0.0
    for n, o, r, m in zip(new.tolist(), old.tolist(), returns.tolist(), mask.tolist(), strict=True):
        if m:
            near = max(min(n, o + 0.2), o - 0.2)
            by_hand += 0.1 * 0.5 * max((n - r) ** 2, (near - r) ** 2)
    assert total(value.ppo_value(new, old, returns, mask, clip=0.2, coef=0.1), "value") == pytest.approx(
        by_hand, rel=1e-12
    )
    unclipped = value.ppo_value(new, old, returns, mask, clip=1e9, coef=0.1)
    assert abs(total(unclipped, "value") - by_hand) > 1e-2  # negative control


def answers() -> tuple[Batch, Tensor, Tensor, Tensor, Tensor]:
    """Two groups of three answers as a packed row, and new, old and reference log-probs and advantages at its tokens (0
    elsewhere)."""
    ids = lambda n: list(range(5, 5 + n))  # noqa: E731
    batch = pack([as_example(ids(4), [ids(3), ids(6), ids(1)]), as_example(ids(7), [ids(2), ids(2), ids(5)])])
    n, mask = len(batch.targets), batch.loss_mask
    old = -random(n, seed=1).abs()
    tensors = (
        old + random(n, seed=2, scale=0.4),
        old,
        old + random(n, seed=4, scale=0.5),
        random(6, seed=3)[batch.segment_ids],
    )
    return batch, *(torch.where(mask, t, 0.0) for t in tensors)


def padded(batch: Batch, values: Tensor) -> Tensor:
    """(T) -> (S, longest answer), padded with zeros on the right, as TRL has it."""
    rows = [v[m] for v, m in zip(batch.split(values), batch.split(batch.loss_mask), strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def grpo_of(
    new: Tensor, old: Tensor, advantages: Tensor, batch: Batch, low: float, high: float, normalise: Any, longest: int
) -> loss_module.Loss:
    """GRPO's own loss."""
    others = (0.0, 0.0)
    actions = grpo.Actions(new, old, advantages, batch, low, high, math.inf, others, others, others)
    return grpo.summed(actions, grpo.clip, normalise, longest)


TRL_NAMES = {"sequence": "grpo", "token": "bnpo", "constant": "dr_grpo"}


@pytest.mark.parametrize("normalise", TRL_NAMES)
def test_grpo_equals_trl_and_the_textbook_loop(normalise: Any) -> None:
    """Two clips and the k3 term, against TRL's own `_compute_loss` on padded rows, and against eq. 3 and 4 token by
    token."""
    from trl import GRPOTrainer

    batch, new, old, ref, advantages = answers()
    low, high, beta, longest = 0.2, 0.28, 0.3, 9
    entropies = torch.where(batch.loss_mask, random(len(batch.targets), seed=5).abs(), 0.0)
    ours = loss_module.combine(
        grpo_of(new, old, advantages, batch, low, high, normalise, longest),
        policy.kl_penalty(new, ref, batch, beta, normalise, longest),
    ).scalar(batch.counts)

    mask = padded(batch, batch.loss_mask.double())
    trainer: Any = SimpleNamespace(
        **dict(
            aux_loss_enabled=False,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            importance_sampling_level="token",
        ),
        **dict(
            beta=beta, epsilon_low=low, epsilon_high=high, loss_type=TRL_NAMES[normalise], max_completion_length=longest
        ),
        **dict(
            use_vllm=False,
            _entropy_bonus_enabled=False,
            use_adaptive_entropy=False,
            entropy_coef=0.1,
            current_gradient_accumulation_steps=1,
            model=SimpleNamespace(training=True),
        ),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (padded(batch, new), padded(batch, entropies), None),
    )
    nothing = torch.zeros(6, 0, dtype=torch.long)
    inputs = {"prompt_ids": nothing, "prompt_mask": nothing, "completion_ids": mask.long(), "completion_mask": mask}
    inputs |= {"old_per_token_logps": padded(batch, old), "ref_per_token_logps": padded(batch, ref)}
    inputs |= {"advantages": padded(batch, advantages)[:, 0]}
    theirs = GRPOTrainer._compute_loss(trainer, None, inputs)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    trainer._entropy_bonus_enabled, trainer.accelerator.sync_gradients = True, False
    bonus = tokens.entropy_bonus(entropies, 0.1).scalar(batch.counts)
    assert (ours + bonus).item() == pytest.approx(GRPOTrainer._compute_loss(trainer, None, inputs).item(), rel=1e-12)
    assert bonus < -1e-3

    by_hand, clipped = 0.0, 0
    for s, length in enumerate((3, 6, 1, 2, 2, 5)):
        for t in range(length):
            n, o, r, a = (padded(batch, x)[s, t].item() for x in (new, old, ref, advantages))
            ratio = math.exp(n - o)
            token = -min(ratio * a, max(min(ratio, 1 + high), 1 - low) * a) + beta * (math.exp(r - n) - (r - n) - 1)
            by_hand += token / {"sequence": 6 * length, "token": 19, "constant": 6 * longest}[normalise]
            clipped += not 1 - low <= ratio <= 1 + high
    assert ours.item() == pytest.approx(by_hand, rel=1e-12)
    measured = grpo_of(new, old, advantages, batch, low, high, normalise, longest)
    assert [float(x) for x in measured.metrics["clip_fraction"]] == [clipped, 19] and clipped > 5
    # Negative controls: one clip for both sides, and another normaliser.
    symmetric = grpo_of(new, old, advantages, batch, low, low, normalise, longest).scalar(batch.counts)
    other = grpo_of(new, old, advantages, batch, low, high, "token" if normalise == "sequence" else "sequence", longest)
    for wrong in (symmetric, other.scalar(batch.counts)):
        assert abs(wrong - measured.scalar(batch.counts)) > 1e-4


def test_rloo_equals_trl_and_the_textbook_loop() -> None:
    from trl import RLOOTrainer

    batch, new, old, _, advantages = answers()
    ours = policy.rloo(new, old, advantages, batch, clip=0.2)
    mask = padded(batch, batch.loss_mask.double())
    trainer: Any = SimpleNamespace(
        **dict(aux_loss_enabled=False, epsilon_low=0.2, epsilon_high=0.2, model=SimpleNamespace(training=True)),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (padded(batch, new), mask, None),
    )
    nothing = torch.zeros(6, 0, dtype=torch.long)
    inputs = {"prompt_ids": nothing, "prompt_mask": nothing, "completion_ids": mask.long(), "completion_mask": mask}
    inputs |= {"old_logps": padded(batch, old).sum(1), "advantages": padded(batch, advantages)[:, 0]}
    theirs = RLOOTrainer._compute_loss(trainer, None, inputs)
    assert ours.scalar(batch.counts).item() == pytest.approx(theirs.item(), rel=1e-12)
    by_hand = 0.0
    for n, o, a in zip(padded(batch, new), padded(batch, old), padded(batch, advantages)[:, 0].tolist(), strict=True):
        ratio = math.exp(sum(n.tolist()) - sum(o.tolist()))
        by_hand -= min(ratio * a, max(min(ratio, 1.2), 0.8) * a)
    assert total(ours, "policy") == pytest.approx(by_hand, rel=1e-12)
    assert 0 < float(ours.metrics["clip_fraction"][0]) < 6
    # negative control: a ratio for each token
    per_token = grpo_of(new, old, advantages, batch, 0.2, 0.2, "sequence", 9)
    assert abs(total(per_token, "policy") - by_hand) > 1e-2


def test_rloo_at_ratio_one_is_reinforce() -> None:
    """Its gradient is minus the advantage at every token's log-prob: that of -A log p(answer)."""
    batch, _, old, _, advantages = answers()
    new = old.clone().requires_grad_()
    (grad,) = torch.autograd.grad(policy.rloo(new, old, advantages, batch, clip=0.2).terms["policy"][0], new)
    torch.testing.assert_close(grad, torch.where(batch.loss_mask, -advantages, 0.0), atol=1e-12, rtol=0)


def test_the_gradient_of_k2_is_that_of_kl() -> None:
    """Over all tokens of a distribution, each as often as it is drawn, the mean gradient of k2 is that of KL(policy ||
    reference); that of k3 is not."""
    logits, ref = random(5, seed=1).requires_grad_(), torch.log_softmax(random(5, seed=2), 0)
    logprobs = torch.log_softmax(logits, 0)
    drawn = logprobs.detach().exp()
    (truth,) = torch.autograd.grad((logprobs.exp() * (logprobs - ref)).sum(), logits, retain_graph=True)
    every = torch.arange(5)
    each = torch.stack([policy.k2_penalty(logprobs, ref, every[i : i + 1], 0.5).terms["kl"][0] for i in every])
    assert torch.equal(each.detach(), 0.25 * (logprobs.detach() - ref).square())
    (found,) = torch.autograd.grad((drawn * each).sum(), logits, retain_graph=True)
    torch.testing.assert_close(found, 0.5 * truth)
    gap = ref - logprobs
    (other,) = torch.autograd.grad((drawn * (gap.exp() - gap - 1)).sum(), logits)
    assert not torch.allclose(other, truth)  # negative control


def test_k3_is_zero_at_the_reference_and_never_negative() -> None:
    """And its mean under the policy is the KL that its definition gives: checked over a whole distribution."""
    batch, new, _, ref, _ = answers()
    assert total(policy.kl_penalty(ref, ref, batch, 0.3, "token", 9), "kl") == 0.0
    assert total(policy.kl_penalty(new, ref, batch, 0.3, "token", 9), "kl") > 1e-2
    p, q = torch.log_softmax(random(50, seed=1), 0), torch.log_softmax(random(50, seed=2), 0)
    k3 = (q - p).exp() - (q - p) - 1
    assert k3.min() >= 0 and (p.exp() * k3).sum().item() == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-12)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.99, 0.0), (1.0, 1.0)])
def test_gae_equals_its_definition(gamma: float, lam: float) -> None:
    """Eq. 16 of arXiv 1506.02438 as it is written: A_t = sum over l of (gamma lambda)^l delta_{t+l}, with V = 0 after
    the last token."""
    rewards, values = random(7, seed=5).numpy(), random(7, seed=6).numpy()
    following = np.append(values[1:], 0.0)
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(7)]
    truth = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, 7)) for t in range(7)]
    np.testing.assert_allclose(gae(rewards, values, gamma, lam), truth, rtol=1e-12)


def test_gae_with_lambda_one_is_the_return_minus_the_value() -> None:
    """And lambda < 1 is not: the negative control."""
    rewards, values = random(6, seed=7).numpy(), random(6, seed=8).numpy()
    returns = rewards[::-1].cumsum()[::-1]
    np.testing.assert_allclose(gae(rewards, values, 1.0, 1.0), returns - values, rtol=1e-12)
    assert np.abs(gae(rewards, values, 1.0, 0.5) - (returns - values)).max() > 1e-2


# ---- gradients by finite differences ---------------------------------------------------------------------------------


def some_pairs(log_ratios: Tensor) -> preference.Pairs:
    lengths = fp64(2.0, 3.0, 5.0)
    coupled = random(6, seed=2)
    return preference.Pairs(log_ratios[0::2], log_ratios[1::2], lengths, lengths + 1, 0.3, 0.1, 0.5, coupled)


def test_gradients_of_every_loss_in_fp64() -> None:
    new, old, gain, mask = ppo_columns(12)
    batch = pack([pair(4, 2, 5), pair(3, 3, 2, seed=1)])
    groups, g_new, g_old, g_ref, g_gain = answers()
    cases = {
        **{
            f"grpo_{n}": (
                lambda x, n=n: grpo_of(x, g_old, g_gain, groups, 0.2, 0.28, n, 9).terms["policy"][0],
                g_new,
            )
            for n in TRL_NAMES
        },
        **{
            f"kl_{n}": (lambda x, n=n: policy.kl_penalty(x, g_ref, groups, 0.3, n, 9).terms["kl"][0], g_new)
            for n in TRL_NAMES
        },
        "rloo": (lambda x: policy.rloo(x, g_old, g_gain, groups, 0.2).terms["policy"][0], g_new),
        "next_token": (lambda x: tokens.next_token(x).terms["nll"][0], random(9)),
        "bradley_terry": (lambda x: reward.bradley_terry(x, fp64(0.0, 0.3, 1.0), 0.1).scalar({"pairs": 3}), random(6)),
        **{
            name: (lambda x, name=name: getattr(preference, name)(some_pairs(x)).sum(), random(6))
            for name in get_args(dpo.PairLoss)
            if name != "aot_unpaired"  # whose value and gradient are of two functions: see test_preference_trl.py
        },
        **{
            name: (lambda x, name=name: getattr(divergence, name)(x, 0.5).sum(), random(6))
            for name in ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
        },
        "chosen_nll": (
            lambda x: preference.chosen_nll(x, batch, 0.5).terms["chosen_nll"][0],
            random(len(batch.loss_mask)),
        ),
        "ppo_policy": (lambda x: policy.ppo_policy(x, old, gain, mask, 0.2).terms["policy"][0], new),
        "ppo_value": (lambda x: value.ppo_value(x, old, gain, mask, 0.2, 0.1).terms["value"][0], new),
    }
    for name, (function, at) in cases.items():
        assert torch.autograd.gradcheck(function, (at.clone().requires_grad_(),), atol=1e-8), name


# ---- log-probs and entropies without (T, V) --------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "elements"), [(3, 7), (5, 60), (17, 17 * VOCAB), (4096, 1 << 20)])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("trainable_head", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_row_logprobs_equal_log_softmax(
    name: str, rows: int, elements: int, trainable_head: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of any size, with soft-capping (Gemma 2), with a frozen and with a trained head: values and
    gradients."""
    monkeypatch.setattr(heads, "ROWS", rows)
    monkeypatch.setitem(heads.ELEMENTS, "cpu", elements)
    base = make_base(name)
    head = Head(base)
    weight = cast(Tensor, head.module.weight)
    weight.requires_grad_(trainable_head)
    targets = torch.arange(17) % VOCAB
    upstream = random(17, seed=9)
    leaves = (
        [random(17, 32, scale=3).requires_grad_(), weight]
        if trainable_head
        else [random(17, 32, scale=3).requires_grad_()]
    )

    logits = leaves[0] @ weight.T
    cap = getattr(base.config, "final_logit_softcapping", None)
    capped = logits if cap is None else cap * torch.tanh(logits / cap)
    truth = torch.log_softmax(capped / temperature, -1)[torch.arange(17), targets]
    naive_entropy = torch.special.entr(torch.softmax(capped / temperature, -1)).sum(-1)
    got, entropy = row_logprobs_and_entropies(head, leaves[0], targets, temperature)

    torch.testing.assert_close(got, truth, atol=1e-12, rtol=0)
    torch.testing.assert_close(entropy, naive_entropy, atol=1e-12, rtol=0)
    mixed, naive_mixed = (got + 0.3 * entropy) @ upstream, (truth + 0.3 * naive_entropy) @ upstream
    grads = torch.autograd.grad(mixed, leaves, retain_graph=True)
    for ours, naive in zip(grads, torch.autograd.grad(naive_mixed, leaves), strict=True):
        torch.testing.assert_close(ours, naive, atol=1e-11, rtol=0)
    # negative control: the entropy's part
    assert (torch.autograd.grad(got @ upstream, leaves)[0] - grads[0]).abs().max() > 1e-3
    with torch.no_grad():  # the pass without derivatives is the same pass, to the bit
        again = row_logprobs_and_entropies(head, leaves[0], targets, temperature)
    assert trainable_head or (torch.equal(again[0], got) and torch.equal(again[1], entropy))
    if cap is not None:  # negative control: the cap matters
        uncapped = torch.log_softmax(logits / temperature, -1)[torch.arange(17), targets]
        assert (uncapped - got).abs().max() > 1e-2


def test_row_logprobs_and_entropies_pass_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(heads.ELEMENTS, "cpu", 3 * 40)
    head = Head(make_base("gemma2"))
    targets = torch.tensor([1, 5, 90])
    for function in (row_logprobs, row_logprobs_and_entropies):
        assert torch.autograd.gradcheck(
            lambda h, f=function: f(head, h, targets, 0.8), (random(3, 32).requires_grad_(),)
        )


def test_logits_of_single_tokens_are_those_of_the_model() -> None:
    """Soft-capped, scaled and with what is added to them; uncapped they are others (negative control)."""
    base, hidden, targets = make_base("gemma2"), random(3, 32), torch.tensor([1, 5, 90])
    head = Head(base)
    head.scale, head.more = 0.5, random(len(head.matrix))
    truth = head(hidden)[torch.arange(3), targets]
    torch.testing.assert_close(head.logits_of(hidden, targets), truth)
    head.softcap = None
    assert (head.logits_of(hidden, targets) - truth).abs().max() > 1e-4


def test_logits_far_apart_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest logit comes in a late block and is hundreds above the others: sums are kept relative to it."""
    monkeypatch.setitem(heads.ELEMENTS, "cpu", 4 * 10)
    head = Head(make_base(dtype=torch.float32))
    weight = cast(Tensor, head.module.weight)
    hidden = 40 * weight[torch.tensor([96, 3, 50, 51])]
    targets = torch.tensor([96, 96, 50, 2])
    truth = torch.log_softmax((hidden @ weight.T).double(), -1)
    got, entropy = row_logprobs_and_entropies(head, hidden.requires_grad_(), targets)
    assert (hidden @ weight.T).max() > 100
    torch.testing.assert_close(got.double(), truth[torch.arange(4), targets], atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(entropy.double(), torch.special.entr(truth.exp()).sum(-1), atol=1e-5, rtol=1e-5)
    (grad,) = torch.autograd.grad(got.sum() + entropy.sum(), hidden)
    assert torch.isfinite(grad).all()


def test_nothing_of_the_size_of_the_vocabulary_is_held() -> None:
    """The largest tensor that the head makes is a block of the vocabulary, whatever V is."""
    largest: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out._base is None:
                largest.append(out.numel())
            return out

    head = Head(make_base())
    head.module = head.owner = torch.nn.Linear(32, 1 << 16, bias=False).requires_grad_(False)
    hidden = random(200, 32).float().requires_grad_()
    with Sizes():
        row_logprobs(head, hidden, torch.arange(200)).sum().backward()
    assert max(largest) <= heads.ELEMENTS["cpu"] < 200 << 16


def test_row_logprobs_of_no_rows_keep_the_graph() -> None:
    """A rank whose micro-batch counts nothing still takes part in the backward, with gradient zero."""
    hidden = random(4, 32).requires_grad_()
    empty = row_logprobs(Head(make_base()), hidden[:0], torch.zeros(0, dtype=torch.long))
    assert empty.shape == (0,)
    (grad,) = torch.autograd.grad(empty.sum(), hidden)
    assert grad.abs().max() == 0


def test_entropies_equal_their_definition() -> None:
    roles = make_roles()
    batch = pack(pairs(3))
    with roles.use("policy"), torch.no_grad():
        hidden = roles.hidden(batch)
    p = torch.softmax(hidden @ cast(Tensor, roles.head.module.weight).T / 0.7, -1)
    truth = torch.where(batch.loss_mask, torch.special.entr(p).sum(-1), 0.0)
    entropies = [
        logprobs_and_entropies(hidden[batch.rows], roles.head, batch, temperature)[1] for temperature in (0.7, 1.0)
    ]
    torch.testing.assert_close(entropies[0], truth, atol=1e-12, rtol=0)
    assert (entropies[1] - truth).abs().max() > 1e-2  # negative control: another temperature


def test_the_entropy_bonus_lowers_the_loss_by_the_mean_entropy() -> None:
    """0.5 x (1 + 2 + 3) nats over four tokens, one of which is certain."""
    loss = tokens.entropy_bonus(fp64(1.0, 2.0, 3.0, 0.0), 0.5)
    assert loss.scalar({"tokens": 4}).item() == pytest.approx(-0.75, rel=1e-12)
    assert loss_module.combine(tokens.next_token(fp64(-1.0, -1.0)), loss).terms.keys() == {"nll", "entropy"}


def test_logprobs_sit_where_their_targets_count() -> None:
    """(T,) log-probs are 0 outside the mask, and `per_sequence` sums each completion alone."""
    roles = make_roles()
    examples = pairs(3)
    batch = pack(examples)
    with torch.no_grad():
        logprobs = roles.logprobs("policy", batch)
        sums = batch.per_sequence(logprobs)
        alone = [roles.logprobs("policy", pack([e], share_prefix=False)) for e in examples]
    assert logprobs[~batch.loss_mask].abs().max() == 0 and logprobs[batch.loss_mask].max() < 0
    truth = torch.cat([pack([e], share_prefix=False).per_sequence(x) for e, x in zip(examples, alone, strict=True)])
    torch.testing.assert_close(sums, truth, atol=1e-5, rtol=0)


def test_what_chosen_completions_gained() -> None:
    """Chosen ones gained -2 and -3 nats over 2 and 4 tokens; rejected ones, which gained 9, take no part, and nothing
    is differentiated."""
    sums = torch.tensor([-3.0, 8.0, -5.0, 7.0], requires_grad=True)
    found = preference.chosen_shift(sums, torch.tensor([-1.0, -1.0, -2.0, -2.0]), torch.tensor([2.0, 9.0, 4.0, 9.0]))
    total, tokens = found.metrics["logps/chosen_per_token"]
    assert float(total) / float(tokens) == pytest.approx(-5 / 6) and not total.requires_grad and not found.terms
