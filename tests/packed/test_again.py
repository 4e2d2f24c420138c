"""What is computed again in the backward has the bits of what would have been kept, and less is kept for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from align.adapters.targets import lora_config
from align.models.base import prepare
from align.models.roles import Roles
from align.packed import again
from align.packed.pack import Batch, pack
from tests.models.models import CONFIGS, pairs


def roles_of(kind: str, dtype: torch.dtype, less: bool, patch: pytest.MonkeyPatch) -> Roles:
    """A model with an adapter in training; without `less` it keeps what transformers keeps."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]))
    with patch.context() as here:
        if not less:
            here.setattr("align.models.base.keep_less", lambda model: None)
        roles = Roles(prepare(model.to(dtype)))
    roles.add_adapter("policy", lora_config(4, 8, "all-linear", 0.0, roles.base))
    for parameter in roles.adapter_parameters("policy"):
        nn.init.normal_(parameter, std=0.1)
    roles.assign("policy", ["policy"])
    roles.train_only("policy")
    return roles


def trained(roles: Roles, batch: Batch) -> tuple[list[Tensor], int]:
    """Log-probs and every gradient, and the bytes that were kept beside weights."""
    weights = {p.untyped_storage().data_ptr() for p in roles.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = roles.logprobs("policy", batch)
    grads = torch.autograd.grad(out.square().sum(), list(roles.trainable().values()))
    return [out.detach(), *grads], sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_equal_bit_for_bit_and_less_is_kept(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients of transformers' own layers, with and without activation checkpointing."""
    batch = pack(pairs(5))
    roles = roles_of(kind, dtype, True, monkeypatch)
    (got, less), (want, whole) = (trained(r, batch) for r in (roles, roles_of(kind, dtype, False, monkeypatch)))
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    assert less < (0.9 if dtype == torch.float32 else 0.75) * whole and all(g.abs().max() > 0 for g in got)
    roles.enable_activation_checkpointing()
    assert all(torch.equal(g, w) for g, w in zip(trained(roles, batch)[0], want, strict=True))


def test_what_else_a_norm_feeds_has_its_gradient() -> None:
    """A layer that PEFT computes, or none adapts, reads the same tensor: the gradients of both add up."""
    norm, weight = nn.RMSNorm(4), torch.randn(4, 4)
    x = torch.randn(3, 4, requires_grad=True)
    made = again.again(norm, x)
    (got,) = torch.autograd.grad((made @ weight).sum() + made.square().sum(), x)
    plain = norm(x)
    (want,) = torch.autograd.grad((plain @ weight).sum() + plain.square().sum(), x)
    assert torch.equal(got, want) and again.origin_of(made) is not None and again.origin_of(plain) is None


def test_a_feed_forward_that_multiplies_once_more_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Falcon-H1's does: a trial finds it. Norms that train keep what their weights need."""
    inner = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: 2 * inner(self, x))
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["llama"]))
    again.keep_less(model)
    assert not any("forward" in vars(module) for module in model.modules() if isinstance(module, LlamaMLP))
    monkeypatch.undo()
    plain = copy.deepcopy(model)
    again.keep_less(model)
    assert all("forward" in vars(module) for module in model.modules() if isinstance(module, LlamaMLP))
    ids = torch.randint(3, 90, (1, 7))
    for m in (plain, model):
        m(ids).logits.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad), name
