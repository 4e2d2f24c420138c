"""Precision: log-probs in bf16 are those of the model's own bf16 logits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from align.core import head as heads
from align.core.head import Head, row_logprobs, row_logprobs_and_entropies
from tests.core.models import CONFIGS, SIZES

HEADS = {
    "llama": CONFIGS["llama"],
    "gemma2": CONFIGS["gemma2"],  # soft-capped
    "cohere": CohereConfig(**SIZES, logit_scale=0.3),
    "granite": GraniteConfig(**SIZES, logits_scaling=0.7),
}


def confident(name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Tensor, Tensor]:
    """A model, hidden states (64, D) that point at one word each, so that the targets' logits are the largest, and those words."""
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
def test_log_probs_in_bf16_are_those_of_the_models_bf16_logits(name: str, trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against log_softmax in fp32 of the model's own logits: never above 0, though the largest logits are 0.125 apart."""
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
    """Gradients of log-probs and entropies to bf16's rounding, against autograd through the model's own logits, of words that are all but
    certain: there a sum of all shares, rounded, less the target's is no gradient at all. Control: another target."""
    model, hidden, targets = confident(name)
    grads = []
    for function in (lambda h: row_logprobs_and_entropies(Head(model), h, targets), lambda h: plainly(own_logits(model, h), targets)):
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
