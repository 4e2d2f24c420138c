"""The fused LoRA layer gives PEFT's values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear

from align.core.lora import _LoraLinear
from tests.core.models import make_roles

IDS = torch.arange(3, 40)[None]


def values_and_gradients(roles: Any, role: str, fused: bool) -> dict[str, torch.Tensor]:
    for layer in roles.base.modules():
        if isinstance(layer, Linear) and not fused:
            layer.__dict__.pop("forward", None)
    embedded = roles.base.get_input_embeddings()(IDS).detach().requires_grad_()
    with roles.use(role):
        layout = dict(position_ids=torch.arange(IDS.shape[1])[None])
        from align.core.pack import Layout

        hidden = roles.base.base_model(inputs_embeds=embedded, layout=Layout(((0, (IDS.shape[1],)),)), use_cache=False, **layout)[0]
    hidden.square().sum().backward()
    found = {name: p.grad.clone() for name, p in roles.named_parameters() if p.grad is not None}
    roles.zero_grad()
    return {"hidden": hidden.detach(), "embedded": embedded.grad, **found}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_fused_equals_peft(name: str, stacked: bool) -> None:
    roles = make_roles(name, adapters=("policy", "parent"))
    roles.assign("both", ["parent", "policy"])
    roles.train_only("policy")
    role = "both" if stacked else "policy"
    fused, peft = (values_and_gradients(roles, role, fused) for fused in (True, False))
    assert set(fused) == set(peft)
    assert len(fused) > 10
    for key, value in peft.items():
        torch.testing.assert_close(fused[key], value, rtol=1e-10, atol=1e-10, msg=key)


def test_it_is_the_fused_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the comparison: one that scales wrongly is found, and only plain linear layers take it."""
    roles = make_roles(adapters=("policy",))
    roles.train_only("policy")
    before = values_and_gradients(roles, "policy", True)
    right = _LoraLinear.apply
    monkeypatch.setattr(_LoraLinear, "apply", lambda x, w, b, s, *f: right(x, w, b, tuple(2 * v for v in s), *f))
    assert (values_and_gradients(roles, "policy", True)["hidden"] - before["hidden"]).abs().max() > 1e-3
    conv = make_roles("gpt2", adapters=("policy",))
    assert not any("forward" in vars(layer) for layer in conv.base.modules() if isinstance(layer, Linear))


def test_gradcheck() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 4), torch.randn(3, 4), torch.randn(3)
    factors = [torch.randn(2, 4), torch.randn(3, 2), torch.randn(1, 4), torch.randn(3, 1)]
    inputs = [t.double().requires_grad_() for t in (x, *factors)]
    assert torch.autograd.gradcheck(lambda x, *f: _LoraLinear.apply(x, weight.double(), bias.double(), (0.5, 2.0), *f), inputs)
