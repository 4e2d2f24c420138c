"""What must not change: gradients under any split or recomputation, the base under sampling, a plan under resume; and
where runs start."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from align import dpo, grpo, ppo, reinforce_pp, reward, rloo, sft
from align.data.examples import Example
from align.data.records import Prompt
from align.ground.errors import AlignError
from align.losses import loss, policy
from align.models.heads import ScoreHead
from align.models.merged import MergedCopy
from align.models.roles import Roles
from align.packed.attention import native_attention
from align.packed.pack import Batch, pack
from align.rl import setup
from align.rl.collect import Rollouts
from align.rl.rewards import by_model
from align.sampling.rollout import as_example
from align.training.checks.start import assert_starts_at_reference
from align.training.plan import Plan
from align.training.step_module import StepModule
from align.training.steps import make_step
from align.training.trainer import fit
from tests.models.models import make_roles, pair, pairs, randomise, settings, with_reference

LossOf = Callable[[Roles, Batch], loss.Loss]
DPO = settings(dpo.Config, beta=0.3, label_smoothing=0.1, sft_coef=0.2, tokens_per_microbatch=64, batch_size=4)
PPO = settings(
    ppo.Config,
    reward="none",
    rollout_size=8,
    batch_size=4,
    ppo_epochs=2,
    max_new_tokens=6,
    temperature=0.8,
    tokens_per_microbatch=64,
)

TRUNK = PPO.model_copy(update={"value": "trunk", "entropy_coef": 0.3})

SAMPLING: dict[str, Any] = dict(
    reward="none",
    rollout_size=8,
    batch_size=4,
    group_size=4,
    max_new_tokens=6,
    temperature=0.8,
    tokens_per_microbatch=64,
)
GRPO = {
    name: settings(grpo.Config, **SAMPLING, kl_coef=0.2, **changes)
    for name, changes in {
        **{n: {"normalise": n, "clip_high": 0.28} for n in ("sequence", "sum", "token", "constant")},
        **{kind: {"loss": kind, "kl_by_ratio": True} for kind in ("cispo", "sapo", "vespo", "gmpo")},
    }.items()
}
RLOO = settings(rloo.Config, **SAMPLING)
REINFORCE_PP = settings(reinforce_pp.Config, **SAMPLING)


def add_head(roles: Roles, role: str, seed: int | None = None) -> None:
    """A score head; with a seed its weights are drawn, else they are zero."""
    head = ScoreHead(32)
    head.weight.data = head.weight.data.double()
    if seed is not None:
        head.weight.data = torch.randn(32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    roles.assign(role, roles.adapters[role], head)


def copy_adapter(roles: Roles, source: str, target: str) -> None:
    for a, b in zip(roles.adapter_parameters(source), roles.adapter_parameters(target), strict=True):
        b.data.copy_(a.data)


def rollout_columns(examples: list[Example]) -> list[Example]:
    """Drawn log-probs, values, advantages and returns, as a rollout would have attached them."""
    draw = np.random.default_rng(0)
    out = []
    for e in examples:
        sizes = [len(s) - e.prefix for s in e.sequences]
        columns = {n: tuple(draw.normal(size=k) for k in sizes) for n in ("old_values", "advantages", "returns")}
        columns["old_logprobs"] = tuple(-4 + draw.normal(size=k) for k in sizes)
        out.append(replace(e, columns=columns))
    return out


def with_random_reference(examples: list[Example]) -> list[Example]:
    draw = np.random.default_rng(1)
    return [
        replace(e, columns={"ref_logprobs": tuple(draw.normal(size=len(s) - e.prefix) for s in e.sequences)})
        for e in examples
    ]


def group(prompt: int, *lengths: int, seed: int = 0) -> Example:
    """Random answers of given lengths to one random prompt."""
    draw = np.random.default_rng(seed)
    return as_example(draw.integers(3, 97, prompt).tolist(), [draw.integers(3, 97, n).tolist() for n in lengths])


def groups(n: int = 5) -> list[Example]:
    """Groups of four answers, with what a rollout would have attached."""
    found = rollout_columns([group(3 + 2 * i, 1 + i, 4, 2 + 3 * i % 5, 6 - i, seed=i) for i in range(n)])
    return [replace(e, columns={**e.columns, "ref_logprobs": e.columns["old_values"]}) for e in found]


def all_stages() -> list[Any]:
    margins = [pair(5 + i, 3 + i, 9 - i, seed=i, margin=0.1 * i) for i in range(5)]
    return [
        pytest.param(sft.loss, pairs(5), id="sft"),
        pytest.param(lambda r, b: reward.loss(r, b, 0.05), margins, id="reward"),
        pytest.param(lambda r, b: dpo.loss(r, b, DPO), with_random_reference(pairs(5)), id="dpo"),
        pytest.param(lambda r, b: ppo.loss(r, b, PPO), rollout_columns(pairs(5)), id="ppo"),
        pytest.param(lambda r, b: ppo.loss(r, b, TRUNK), rollout_columns(pairs(5)), id="ppo-trunk-entropy"),
        *(
            pytest.param(lambda r, b, c=c: grpo.loss(r, b, c, c.kl_coef), groups(), id=f"grpo-{name}")
            for name, c in GRPO.items()
        ),
        pytest.param(lambda r, b: rloo.loss(r, b, RLOO), groups(), id="rloo"),
        pytest.param(lambda r, b: reinforce_pp.loss(r, b, REINFORCE_PP, 0.0), groups(), id="reinforce_pp"),
    ]


def two_roles() -> Roles:
    """Policy and value adapters with heads, all trainable."""
    roles = make_roles(adapters=("policy", "value"))
    add_head(roles, "policy", seed=5)
    add_head(roles, "value", seed=6)
    roles.train_only("policy", "value", heads=["policy", "value"])
    return roles


def gradients(roles: Roles, loss: LossOf, examples: list[Example], budget: int) -> Tensor:
    """Gradient of one optimizer step; parameters that the loss does not touch count as zero."""
    step = make_step(examples, budget)
    for p in roles.trainable().values():
        p.grad = None
    for batch in step.batches:
        loss(roles, batch).scalar(step.counts).backward()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in roles.trainable().values()]
    )


# ---- any split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "examples"), all_stages())
def test_gradients_do_not_depend_on_the_split(loss: LossOf, examples: list[Example]) -> None:
    """One micro-batch, several, or one per record."""
    roles = two_roles()
    whole = gradients(roles, loss, examples, 10_000)
    assert len(make_step(examples, 40).batches) > 2 and len(make_step(examples, 1).batches) == len(examples)
    for budget in (40, 1):
        torch.testing.assert_close(gradients(roles, loss, examples, budget), whole, atol=0, rtol=1e-5)
    assert whole.norm() > 1e-2


@pytest.mark.parametrize(("loss", "examples"), all_stages()[5:])
def test_answers_that_share_a_prompt_give_the_gradients_of_each_alone(loss: LossOf, examples: list[Example]) -> None:
    """Four branches on one prompt, against the prompt repeated before each answer; another prompt gives another
    gradient."""

    def gradient(batch: Batch) -> Tensor:
        roles = two_roles()
        loss(roles, batch).scalar(batch.counts).backward()
        return torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in roles.trainable().values()]
        )

    shared, alone = gradient(pack(examples)), gradient(pack(examples, share_prefix=False))
    assert (shared - alone).norm() / alone.norm() < 1e-6
    other = [replace(e, sequences=tuple([5, *s[1:]] for s in e.sequences)) for e in examples]
    assert (gradient(pack(other)) - shared).norm() / shared.norm() > 1e-2


def test_mean_of_means_is_another_gradient() -> None:
    """Negative control: dividing every micro-batch by its own count, as a naive loop does."""
    roles = two_roles()
    examples = pairs(5)
    whole = gradients(roles, sft.loss, examples, 10_000)
    for p in roles.trainable().values():
        p.grad = None
    step = make_step(examples, 40)
    for batch in step.batches:
        (sft.loss(roles, batch).scalar(batch.counts) / len(step.batches)).backward()
    naive = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in roles.trainable().values()]
    )
    assert (naive - whole).norm() / whole.norm() > 1e-2


def trained(loss: LossOf, examples: list[Example], budget: int, folder: Path, batch_size: int = 3) -> dict[str, Tensor]:
    roles = two_roles()
    roles.train_only("policy", heads=["policy"])
    config = settings(reward.Config, learning_rate=0.05, head_learning_rate=0.05, optimizer="sgd")
    plan = Plan(examples, batch_size=batch_size, epochs=2, max_steps=None, tokens_per_microbatch=budget, seed=0)
    fit(roles, loss, plan, config, title="test", checkpoints=folder)
    return {k: p.detach().clone() for k, p in roles.trainable().items()}


def test_weights_after_sgd_do_not_depend_on_the_split(tmp_path: Path) -> None:
    """Four optimizer steps through `StageTrainer`, clipping included."""
    loss: LossOf = lambda r, b: reward.loss(r, b, 0.05)  # noqa: E731
    whole = trained(loss, pairs(6), 10_000, tmp_path / "a")
    split = trained(loss, pairs(6), 30, tmp_path / "b")
    other = trained(loss, pairs(6), 10_000, tmp_path / "c", batch_size=2)  # negative control
    torch.testing.assert_close(split, whole, atol=1e-9, rtol=1e-6)
    assert max((other[k] - whole[k]).abs().max() for k in whole) > 1e-4


# ---- where a run starts ----------------------------------------------------------------------------------------------


def test_dpo_starts_at_ln_2_with_no_margin() -> None:
    """A policy that is its reference has margin 0; the bare base as reference ("adapter disabled") has not: the
    negative control."""
    roles = make_roles(adapters=("policy", "reference"))
    copy_adapter(roles, "policy", "reference")
    config = settings(dpo.Config, beta=0.3, tokens_per_microbatch=64)
    examples = with_reference(roles, pairs(4))
    loss = dpo.loss(roles, pack(examples), config)
    assert loss.scalar({"pairs": 4}).item() == pytest.approx(math.log(2), abs=1e-5)
    assert abs(loss.metrics["rewards/margins"][0].item()) < 1e-5
    assert_starts_at_reference(roles, examples, 64)
    roles.assign("reference", [])
    bare = with_reference(roles, pairs(4))
    with pytest.raises(AlignError, match="policy and reference differ in their adapters"):
        assert_starts_at_reference(roles, bare, 64)
    roles.assign("reference", ["reference"])
    with pytest.raises(AlignError, match=r"differ by .* nats per token"):  # the right adapters, another's log-probs
        assert_starts_at_reference(roles, bare, 64)


def test_reward_starts_at_ln_2_with_a_zero_head() -> None:
    roles = make_roles()
    add_head(roles, "policy")
    loss = reward.loss(roles, pack(pairs(4)), centre=0.0)
    assert loss.scalar({"pairs": 4}).item() == pytest.approx(math.log(2), rel=1e-12)
    add_head(roles, "policy", seed=1)
    # negative control
    assert abs(reward.loss(roles, pack(pairs(4)), 0.0).scalar({"pairs": 4}).item() - math.log(2)) > 1e-2


def rollouts(reference_is_policy: bool, config: ppo.Config = PPO) -> tuple[Roles, Rollouts]:
    roles = make_roles(adapters=("policy", "reference", "reward", "value"))
    if reference_is_policy:
        copy_adapter(roles, "policy", "reference")
    add_head(roles, "reward", seed=1)
    add_head(roles, "value", seed=2)
    renderer: Any = SimpleNamespace(stop_ids=(2,), tokenizer=SimpleNamespace(pad_token_id=0))
    torch.manual_seed(0)
    prompts = [list(e.sequences[0][: e.shared]) for e in pairs(5)]
    rewards = [by_model("reward", 1.0, roles, "reward", 64)]
    measure = lambda r, b, h: {"old_values": ppo.values(r, b, h, config)}  # noqa: E731
    more: dict[str, Any] = {
        "advantages": lambda r: ppo.advantages(r, config),
        "epochs": config.ppo_epochs,
        "measure": measure,
    }
    source = Rollouts(roles, [Prompt(())] * 5, prompts, renderer, config, rewards=rewards, **more)
    return roles, source


def test_ppo_starts_at_ratio_one_and_no_kl() -> None:
    """Samples drawn from merged weights, measured with adapters, and packed again in minibatches: still ratio 1 to
    rounding."""
    roles, source = rollouts(reference_is_policy=True)
    step = next(iter(source))
    found = [ppo.loss(roles, b, PPO).metrics for b in step.batches]
    assert sum(float(f["ratio"][0]) for f in found) == pytest.approx(step.counts["tokens"], rel=1e-5)
    assert sum(float(f["clip_fraction"][0]) for f in found) == 0
    assert source.metrics()["kl"] == pytest.approx(0.0, abs=1e-5)
    others = [roles.logprobs("reference", b, 1.0) - b.columns["old_logprobs"] for b in step.batches]
    # control: another temperature
    assert max(float(o[b.loss_mask].abs().max()) for o, b in zip(others, step.batches, strict=True)) > 1e-2


def test_every_rollout_and_every_rank_draws_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt throughout, so only the draws can differ: between ranks and rollouts they do; by what was drawn before
    they do not."""
    _, source = rollouts(reference_is_policy=True)
    source.prompt_ids = source.prompt_ids[:1]
    monkeypatch.setattr("align.rl.collect.gather", lambda rows: rows)

    def drawn(rollout: int, rank: int) -> list[Any]:
        monkeypatch.setattr("align.rl.collect.rank_and_world", lambda: (rank, 2))
        return [e.sequences for e in source.collect(rollout)[0]]

    first = drawn(0, 0)
    assert (
        len(first) == 4
        and len({str(s) for rollout, rank in ((0, 0), (0, 1), (1, 0), (1, 1)) for s in drawn(rollout, rank)}) > 12
    )
    torch.rand(7)
    assert drawn(0, 0) == first != drawn(0, 1)


def test_a_value_on_the_policys_trunk_takes_one_forward_and_has_the_gradient_of_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The policy's loss and entropy by one forward, the value's by another through the policy's adapter, added up."""
    examples = rollout_columns(pairs(5))
    roles = two_roles()
    got = gradients(roles, lambda r, b: ppo.loss(r, b, TRUNK), examples, 10_000)
    roles.assign("value", roles.adapters["policy"])

    def apart(r: Roles, b: Batch) -> loss.Loss:
        _, logprobs, bonus = setup.policy_logprobs(r, b, TRUNK)
        surrogate = policy.ppo_policy(
            logprobs, b.columns["old_logprobs"], b.columns["advantages"], b.loss_mask, TRUNK.clip
        )
        return loss.combine(surrogate, bonus, ppo.value_loss(r.values("value", b), b, TRUNK))

    truth = gradients(roles, apart, examples, 10_000)
    assert (got - truth).norm() / truth.norm() < 1e-5  # llama's norms compute in fp32
    own = gradients(
        two_roles(), lambda r, b: ppo.loss(r, b, TRUNK.model_copy(update={"value": "adapter"})), examples, 10_000
    )
    assert (got - own).norm() / own.norm() > 1e-2  # negative control: an adapter of its own is another function
    forwards: list[str] = []
    hidden = Roles.hidden
    monkeypatch.setattr(
        Roles, "hidden", lambda self, batch, rows=None: forwards.append(self.active) or hidden(self, batch, rows)
    )
    for config in (TRUNK, PPO):
        ppo.loss(two_roles(), pack(examples), config)
    assert forwards == ["policy", "policy", "value"]


# ---- steps over rollouts ---------------------------------------------------------------------------------------------


def sampler_gap(source: Rollouts) -> float:
    source.collect(0)
    return source.metrics()["sampler_gap/max"]


def test_the_sampler_drew_with_the_log_probs_that_the_trainer_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """To fp32's rounding; another temperature shows, and so does a merged copy from before the last step."""
    roles, source = rollouts(reference_is_policy=True)
    assert sampler_gap(source) < 1e-5
    assert 0 < source.metrics()["sampler_gap/mean"] <= source.metrics()["sampler_gap/max"]
    draw = type(source.sampler).__call__
    with monkeypatch.context() as patch:
        patch.setattr(
            type(source.sampler), "__call__", lambda self, rows, **more: draw(self, rows, **more | {"temperature": 1.0})
        )
        assert sampler_gap(source) > 1e-2
    for name in ("policy", "reference"):
        randomise(roles, name, seed=9)
    assert sampler_gap(source) > 1e-2
    source.sampler.forget()
    assert sampler_gap(source) < 1e-5


def test_a_merged_copy_of_a_base_in_bf16_is_in_bf16() -> None:
    """Adapters stay in fp32 beside it; what is merged is rounded once."""
    roles = make_roles()
    roles.base.to(torch.bfloat16)
    for p in roles.adapter_parameters("policy"):
        p.data = p.data.float()
    merged = MergedCopy(roles, "policy")
    assert {p.dtype for p in merged.merged().parameters()} == {torch.bfloat16}
    layer, plain, _ = merged.matrices[0]
    want = layer.get_base_layer().weight.float() + layer.get_delta_weight("policy")
    assert torch.equal(plain.weight, want.to(torch.bfloat16)) and not torch.equal(
        plain.weight, layer.get_base_layer().weight
    )


def test_no_merged_copy_lies_in_memory_while_the_policy_trains() -> None:
    _, source = rollouts(reference_is_policy=True)
    merged = source.sampler.copy
    assert merged is not None and merged.matrices
    dropped = lambda: [plain.weight is None for _, plain, _ in merged.matrices]  # noqa: E731
    assert all(dropped())
    source.collect(0)
    assert not any(dropped())  # negative control: after sampling it does
    next(iter(source))
    assert all(dropped())


def test_a_rollout_is_left_where_the_policy_moved_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps a rollout, seven in all. The second step of the first rollout moves too far, later ones do not."""
    _, source = rollouts(True, PPO.model_copy(update={"max_approx_kl": 0.1, "max_steps": 7}))
    begun: list[int] = []
    collect = source.collect
    monkeypatch.setattr(source, "collect", lambda index: begun.append(index) or collect(index))
    rollout_of = []
    for i, _ in enumerate(source):
        rollout_of.append(source.done)
        source.feedback({"approx_kl": 0.2 if i == 1 else 0.1, "ratio": 5.0})
    assert rollout_of == [1, 1, 2, 2, 2, 2, 3] and begun == [0, 1, 2] and source.left_early == 1
    assert source.metrics()["left_early"] == 1
    # negative control: without the setting nothing is left
    _, patient = rollouts(True, PPO.model_copy(update={"max_steps": 7}))
    rollout_of = []
    for _ in patient:
        rollout_of.append(patient.done)
        patient.feedback({"approx_kl": 9.0})
    assert rollout_of == [1, 1, 1, 1, 2, 2, 2] and "left_early" not in patient.metrics()


def test_a_source_goes_on_after_any_step() -> None:
    """Saved after each of seven steps, the second of which left its rollout: a new source gives the steps that were
    still to come."""
    config = PPO.model_copy(update={"max_approx_kl": 0.1, "max_steps": 7, "kl_target": 1.0, "kl_horizon": 80})

    def go_on(source: Rollouts, state: dict[str, Any] | None = None) -> tuple[list[Any], list[dict[str, Any]]]:
        """What each step holds, and the state after it."""
        if state is not None:
            source.load_state_dict(state)
        steps, states = [], []
        for step in source:
            source.feedback({"approx_kl": 0.2 if source.taken == 2 else 0.0})
            steps.append([(b.input_ids.tolist(), {k: v.tolist() for k, v in b.columns.items()}) for b in step.batches])
            states.append(copy.deepcopy(source.state_dict()))
        return steps, states

    whole, states = go_on(rollouts(True, config)[1])
    assert len(whole) == 7 and [s["counts"]["left_early"] for s in states] == [0, 1, 1, 1, 1, 1, 1]
    for taken in (1, 2, 4, 6):
        rest, _ = go_on(rollouts(True, config)[1], states[taken - 1])
        assert rest == whole[taken:]
    # negative control
    assert go_on(rollouts(True, config)[1], states[0] | {"counts": states[0]["counts"] | {"place": 0}})[0] != whole[1:]


def test_the_price_of_kl_is_steered_between_rollouts() -> None:
    """It stays for all steps of a rollout, then follows what that rollout measured."""
    _, source = rollouts(True, PPO.model_copy(update={"kl_target": 1.0, "kl_horizon": 80, "max_steps": 6}))
    prices = []
    for _ in source:
        prices.append(source.kl.coef)
        assert source.metrics()["kl_coef"] == source.kl.coef
        source.measured["kl"] = 3.0
    assert prices == [0.05] * 4 + [pytest.approx(0.05 * (1 + 0.2 * 8 / 80))] * 2


def test_ppo_refuses_another_reference() -> None:
    with pytest.raises(AlignError, match="policy and reference differ"):
        next(iter(rollouts(reference_is_policy=False)[1]))


def test_ppo_advantages_are_white_and_the_score_sits_on_the_last_token() -> None:
    """With no KL price and V = 0 every token of a sample has that sample's score as its return (gamma = lambda = 1)."""
    roles, source = rollouts(True, PPO.model_copy(update={"kl_coef": 0.0, "gae_lambda": 1.0}))
    add_head(roles, "value")
    examples, _ = source.collect(0)
    advantages = np.concatenate([e.columns["advantages"][0][:-1] for e in examples])
    assert advantages.mean() == pytest.approx(0, abs=1e-6) and advantages.std() == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        scores = torch.cat([roles.scores("reward", pack([e])) for e in examples])
    for example, score in zip(examples, scores.tolist(), strict=True):
        kept = score if example.sequences[0][-1] == 2 else score - PPO.missing_eos_penalty
        np.testing.assert_allclose(example.columns["returns"][0][:-1], kept, rtol=1e-5, atol=1e-5)


def test_parts_of_a_loss_are_computed_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy's graph is gone before the value's is there; together the parts give the gradients of the whole, bit
    for bit."""
    examples, asked = rollout_columns(pairs(4)), []
    values = Roles.values
    monkeypatch.setattr(Roles, "values", lambda self, *args: asked.append(args[0]) or values(self, *args))
    roles, batch = two_roles(), pack(examples)
    counts = {"tokens": 9, "sequences": 4, "pairs": 2}
    parts = StepModule(roles, lambda r, b: ppo.parts(r, b, PPO), torch.float64).parts(batch)
    for names, seen in (({"policy"}, []), ({"value"}, ["value"])):
        part = next(parts)
        assert part.terms.keys() == names and asked == seen
        part.scalar(counts).backward()
    assert next(parts, None) is None
    whole = two_roles()
    ppo.loss(whole, batch, PPO).scalar(counts).backward()
    grads = [[p.grad for p in r.trainable().values() if p.grad is not None] for r in (roles, whole)]
    assert len(grads[0]) > 8 and all(torch.equal(p, q) for p, q in zip(*grads, strict=True))
    trunk = StepModule(two_roles(), lambda r, b: ppo.parts(r, b, TRUNK), torch.float64).parts(batch)
    assert [set(part.terms) for part in trunk] == [{"policy", "entropy", "value"}]  # one forward serves both


# ---- recomputation ---------------------------------------------------------------------------------------------------


def test_activation_checkpointing_recomputes_inside_the_role_of_the_forward() -> None:
    """Two roles in one backward give the gradients of no checkpointing; recomputing with whatever is active then gives
    others."""
    loss: LossOf = lambda r, b: ppo.loss(r, b, PPO)  # noqa: E731
    examples = rollout_columns(pairs(4))
    truth = gradients(two_roles(), loss, examples, 10_000)
    ours, naive = two_roles(), two_roles()
    ours.enable_activation_checkpointing()
    torch.testing.assert_close(gradients(ours, loss, examples, 10_000), truth, atol=1e-12, rtol=1e-9)
    naive.base.train()
    naive.base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    with ours.use("value"), naive.use("value"):  # the backward runs inside a role that the policy's forward was not in
        torch.testing.assert_close(gradients(ours, loss, examples, 10_000), truth, atol=1e-12, rtol=1e-9)
        wrong = gradients(naive, loss, examples, 10_000)
    assert (wrong - truth).norm() / truth.norm() > 1e-2
    assert ours.active == "base"


def test_a_role_is_left_after_an_exception_and_requires_grad_stays() -> None:
    roles = make_roles(adapters=("policy", "reference"))
    roles.train_only("policy")
    before = set(roles.trainable())
    with pytest.raises(RuntimeError), roles.use("reference"):
        raise RuntimeError
    assert roles.active == "base" and set(roles.trainable()) == before
    assert all(".policy." in name for name in before)


def test_roles_differ_and_the_base_role_has_no_adapter() -> None:
    roles = make_roles(adapters=("policy", "reference"))
    batch = pack(pairs(2))
    with torch.no_grad():
        a, b, bare = (roles.hidden_as(role, batch) for role in ("policy", "reference", "base"))
    assert min((a - b).abs().max(), (a - bare).abs().max()) > 1e-2
    copy_adapter(roles, "policy", "reference")
    with torch.no_grad():
        assert torch.equal(roles.hidden_as("reference", batch), a)


# ---- sampling weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_merged_copy_equals_the_adapters_and_leaves_the_base_alone(name: str) -> None:
    roles = make_roles(name, adapters=("policy", "reward"))
    roles.assign("both", ["policy", "reward"])
    before = {k: p.clone() for k, p in roles.base_parameters()}
    ids = torch.tensor([list(pairs(1)[0].sequences[0])])
    for seed, role in enumerate(("policy", "both")):
        merged = MergedCopy(roles, role)
        merged.merged()
        example = Example((ids[0].tolist(),), ([False] + [True] * (ids.shape[1] - 1),))
        with torch.no_grad(), native_attention(merged.model):
            logits = merged.model(input_ids=ids, use_cache=False).logits[0]
        with torch.no_grad():
            ours = roles.head(roles.hidden_as(role, pack([example])))
            bare = roles.head(roles.hidden_as("base", pack([example])))
        torch.testing.assert_close(logits, ours, atol=1e-4, rtol=1e-4)
        assert (bare - ours).abs().max() > 1e-2  # negative control: the adapters matter
        randomise(roles, "policy", seed=7 + seed)
        merged.drop()
        merged.merged()
        with torch.no_grad(), native_attention(merged.model):
            moved = merged.model(input_ids=ids, use_cache=False).logits[0]
        with torch.no_grad():
            torch.testing.assert_close(moved, roles.head(roles.hidden_as(role, pack([example]))), atol=1e-4, rtol=1e-4)
        assert (moved - logits).abs().max() > 1e-2

        copied = {p.data_ptr() for _, p in merged.model.named_parameters()} - {
            p.data_ptr() for p in roles.base.parameters()
        }
        assert len(copied) == len(merged.matrices)  # only what an adapter touches has its own storage
    assert all(torch.equal(p, before[k]) for k, p in roles.base_parameters())


# ---- plans -----------------------------------------------------------------------------------------------------------


def plan(seed: int = 0) -> Plan:
    return Plan(pairs(7), batch_size=3, epochs=2, max_steps=None, tokens_per_microbatch=50, seed=seed)


def tokens(steps: Any) -> list[list[list[int]]]:
    return [[b.input_ids[0].tolist() for b in step.batches] for step in steps]


def test_a_plan_goes_on_where_it_was_saved() -> None:
    whole = tokens(plan())
    first = plan()
    steps = iter(first)
    taken = tokens([next(steps), next(steps)])
    second = plan()
    second.load_state_dict(first.state_dict())
    assert taken + tokens(second) == whole
    assert tokens(plan(seed=1)) != whole  # negative control


def test_a_plan_shows_every_record_once_an_epoch() -> None:
    steps = list(plan())
    assert [s.records for s in steps] == [3, 3, 1] * 2
    whole = sum(e.tokens for e in pairs(7))
    for epoch in (steps[:3], steps[3:]):
        assert sum(b.input_ids.shape[1] for s in epoch for b in s.batches) == whole == sum(s.tokens for s in epoch)
        assert sum(s.counts["pairs"] for s in epoch) == 7
    assert tokens(steps[:3]) != tokens(steps[3:])  # another order each epoch


def test_counts_of_a_step_are_those_of_its_micro_batches() -> None:
    step = make_step(pairs(7), 50)
    assert len(step.batches) > 1
    for unit, count in step.counts.items():
        if unit != "lists":  # as many as there are examples, which a step alone knows
            assert count == sum(b.counts[unit] for b in step.batches)
    assert step.counts["lists"] == 7
