"""Precision: log-probs in bf16 are those of the model's own bf16 logits."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from align.ground.errors import AlignError, InputError
from align.models import precision
from align.packed import attention, probe
from align.packed import vocabulary as heads
from align.packed.head import Head
from align.packed.vocabulary import row_logprobs, row_logprobs_and_entropies
from align.sampling import decode, growing, rollout
from align.sampling.generating import contiguous_inputs
from align.sampling.rollout import Sampler
from align.training.checks.start import assert_starts_at_reference
from tests.models.models import CONFIGS, SIZES, VOCAB, make_base, make_roles, pairs, with_reference

HEADS = {
    "llama": CONFIGS["llama"],
    "gemma2": CONFIGS["gemma2"],  # soft-capped
    "cohere": CohereConfig(**SIZES, logit_scale=0.3),
    "granite": GraniteConfig(**SIZES, logits_scaling=0.7),
}


def confident(name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Tensor, Tensor]:
    """A model, hidden states (64, D) that point at one word each, so that the targets' logits are the largest, and
    those words."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(HEADS[name]), dtype=dtype).requires_grad_(False)
    weight = model.get_output_embeddings().weight
    weight.normal_(std=0.5)
    targets = torch.arange(64) % len(weight)
    hidden = (2.5 * weight[targets].float() + 0.3 * torch.randn(64, weight.shape[1])).to(dtype)
    return model, hidden, targets


def own_logits(model: Any, hidden: Tensor) -> Tensor:
    """What the model itself makes of last hidden states."""
    model.base_model.forward = lambda *args, **kwargs: BaseModelOutputWithPast(last_hidden_state=hidden[None])
    out = type(model).forward(model, input_ids=torch.zeros(1, len(hidden), dtype=torch.long))
    del model.base_model.forward
    return out.logits[0]


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", sorted(HEADS))
def test_log_probs_in_bf16_are_those_of_the_models_bf16_logits(
    name: str, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against log_softmax in fp32 of the model's own logits: never above 0, though the largest logits are 0.125
    apart."""
    monkeypatch.setitem(heads.ELEMENTS, "cpu", 64 * 10)
    model, hidden, targets = confident(name)
    head = Head(model)
    if trained:
        head.module.weight.requires_grad_(True)
    with torch.set_grad_enabled(trained):
        got, entropy = row_logprobs_and_entropies(head, hidden, targets)
    truth = torch.log_softmax(own_logits(model, hidden).float(), -1)
    wanted = truth.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(entropy, torch.special.entr(truth.exp()).sum(-1), atol=2e-5, rtol=1e-4)
    assert got.max() <= 0
    assert torch.equal(head(hidden), own_logits(model, hidden).float())

    # negative control: the target's logit in fp32 beside the sum over rounded ones
    exact = (hidden.float() * head.module.weight[targets].float()).sum(-1) * head.scale
    exact = exact if head.softcap is None else head.softcap * torch.tanh(exact / head.softcap)
    mixed = exact - torch.logsumexp(own_logits(model, hidden).float(), -1)
    assert (mixed - wanted).abs().max() > 1e-3
    assert name in ("gemma2", "cohere") or mixed.max() > 1e-3  # these two scale their logits down


@pytest.mark.parametrize("name", sorted(HEADS))
def test_slopes_in_bf16_are_those_of_the_models_logits(name: str) -> None:
    """Gradients of log-probs and entropies to bf16's rounding, against autograd through the model's own logits, of
    words that are all but certain: there a sum of all shares, rounded, less the target's is no gradient at all.
    Control: another target."""
    model, hidden, targets = confident(name)
    grads = []
    for function in (
        lambda h: row_logprobs_and_entropies(Head(model), h, targets),
        lambda h: plainly(own_logits(model, h), targets),
    ):
        leaf = hidden.clone().requires_grad_()
        logprobs, entropies = function(leaf)
        grads.append([torch.autograd.grad(x.sum(), leaf, retain_graph=True)[0].float() for x in (logprobs, entropies)])
    for ours, theirs in zip(*grads, strict=True):
        assert (ours - theirs).norm() < 2e-2 * theirs.norm()
    leaf = hidden.clone().requires_grad_()
    other = torch.autograd.grad(row_logprobs(Head(model), leaf, targets.roll(1)).sum(), leaf)[0].float()
    assert (other - grads[1][0]).norm() > 0.5 * grads[1][0].norm()


def plainly(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(logits.float(), -1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


# ---- the probe -------------------------------------------------------------------------------------------------------


def leak(prefix: int, branches: tuple[int, ...], window: int | None, device: torch.device) -> Tensor:
    """A mask under which a branch sees those before it."""
    n = prefix + sum(branches)
    return torch.ones(n, n, dtype=torch.bool, device=device).tril()


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "gemma3", "gpt2"])
def test_bases_in_bf16_are_packed_and_grown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32, layer by layer, packed equals alone; control: a row that leaks between branches, found in fp32 and by
    rounding's floor."""
    base = make_base(name, torch.bfloat16)
    before = {key: p.clone() for key, p in base.state_dict().items()}
    assert probe.probe(probe.trial(base)) == (True, "")
    assert growing.probe_growing(probe.trial(base)) == ""
    assert all(p.dtype == before[key].dtype and torch.equal(p, before[key]) for key, p in base.state_dict().items())
    with torch.no_grad():
        monkeypatch.setattr(attention, "group_mask", leak)
        tried = probe.trial(base)
        assert "in fp32 and alone differ" in probe.difference(tried, tried.packed, "packed")
        if name == "llama":
            assert "where rounding makes" in probe.difference(tried, tried.packed, "packed", exactly=False)


def test_a_cache_that_forgets_is_found_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode.Cache, "_unseen", lambda self, window, like: torch.zeros(()))
    assert "grown in a cache" in growing.probe_growing(probe.trial(make_base("llama", torch.bfloat16)))


def test_a_base_that_ignores_the_layout_is_found_in_bf16() -> None:
    assert not probe.probe(probe.trial(make_base("bloom", torch.bfloat16)))[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_that_cannot_grow_is_sampled_by_generate_or_refused(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where our cache fails, `generate` is tried; where its log-probs are not those of the whole text either, nobody
    samples."""
    roles = make_roles("llama", dtype)
    assert Sampler(roles, "policy", [2], 0).grows
    roles.grows = None
    monkeypatch.setattr(rollout, "probe_growing", lambda model: "it was told so")
    sampler = Sampler(roles, "policy", [2], 0)
    assert not sampler.grows
    (answers,) = sampler([[5, 6, 7]], n=3, max_new_tokens=4, temperature=1.0)
    assert len(answers) == 3
    roles.grows = None
    monkeypatch.setattr(type(roles.base), "prepare_inputs_for_generation", forgetful(type(roles.base)))
    roles.sampled_together = None
    with pytest.raises(InputError, match="cannot be sampled from"):
        Sampler(roles, "policy", [2], 0)([[5, 6, 7]], n=1, max_new_tokens=4, temperature=1.0)


def forgetful(model: Any) -> Any:
    """A model's way to prepare a step of `generate`, with the newest token's embedding of another word."""
    own = model.prepare_inputs_for_generation

    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = own(self, *args, **kwargs)
        return {**inputs, "input_ids": (inputs["input_ids"] + 1) % VOCAB}

    return prepare


# ---- where a run starts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_starts_at_its_reference(dtype: torch.dtype) -> None:
    """Log-probs of other packed rows are near enough in bf16 as well; those of another adapter are not, nor is the
    adapter itself."""
    roles = make_roles("qwen2", dtype, adapters=("policy", "reference"))
    other = with_reference(roles, pairs(4))  # of another adapter
    set_equal(roles)
    assert_starts_at_reference(roles, with_reference(roles, pairs(4)), 4096)
    with pytest.raises(AlignError, match="nats per token"):
        assert_starts_at_reference(roles, other, 4096)
    next(p for key, p in roles.base.named_parameters() if ".reference." in key and "lora_B" in key).data[0, 0] += 1e-3
    with pytest.raises(AlignError, match="in their adapters"):  # far below what log-probs could show in bf16
        assert_starts_at_reference(roles, with_reference(roles, pairs(4)), 4096)


def set_equal(roles: Any) -> None:
    for mine, its in zip(roles.adapter_parameters("policy"), roles.adapter_parameters("reference"), strict=True):
        its.data = mine.data.clone()


# ---- what auto takes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "speed", "dtype", "said"),
    [
        (False, 9.0, torch.float32, "no bf16 units"),
        (True, 2.1, torch.bfloat16, "2.1 times as long in fp32"),
        (True, 1.2, torch.float32, "bf16 is taken from 1.3 on"),
    ],
)
def test_auto_takes_bf16_on_a_cpu_only_where_it_is_clearly_faster(
    units: bool, speed: float, dtype: torch.dtype, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: units)
    monkeypatch.setattr(precision, "_bf16_speed", lambda: speed)
    found, why = precision.explain_precision("auto")
    assert found == dtype == precision.resolve_precision("auto") and said in why
    assert precision.explain_precision("fp32") == (torch.float32, "")


def test_measuring_takes_nothing_from_the_runs_own_draws() -> None:
    state = torch.get_rng_state()
    precision._bf16_speed.cache_clear()
    assert precision._bf16_speed() > 0 and torch.equal(torch.get_rng_state(), state)


def test_linear_layers_get_contiguous_inputs_for_generate() -> None:
    """Of a slice, torch would expand a frozen weight per row; here the head gets a tensor of its own. Control:
    without."""
    base, seen = make_base("llama", torch.float32), []
    head = base.get_output_embeddings()
    watch = head.register_forward_hook(lambda _, args, out: seen.append(args[0].is_contiguous()))
    ids = torch.randint(3, VOCAB, (4, 7), generator=torch.Generator().manual_seed(0))
    for around in (contiguous_inputs(base), nullcontext()):
        with torch.no_grad(), attention.native_attention(base), around:
            base(input_ids=ids, logits_to_keep=1)
    watch.remove()
    assert seen == [True, False] and len(head._forward_pre_hooks) == 0
