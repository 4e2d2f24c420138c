"""The fused LoRA layers give PEFT's values and gradients."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from align.adapters.lora import Output, _LoraLinears
from align.adapters.targets import lora_config
from align.models.base import load_base
from align.models.roles import Roles
from align.models.save import save_model
from align.packed.pack import Layout
from align.rendering.tokenizer import train_tokenizer
from tests.models.models import make_base, make_roles, randomise

IDS = torch.arange(3, 40)[None]


def values_and_gradients(roles: Roles, role: str, fused: bool) -> dict[str, Tensor]:
    for layer in roles.base.modules():
        if isinstance(layer, LoraLayer) and not fused:
            vars(layer).pop("forward", None)
    embedded = roles.base.get_input_embeddings()(IDS).detach().requires_grad_()
    with roles.use(role):
        layout = Layout(((0, (IDS.shape[1],)),))
        hidden = roles.base.base_model(
            inputs_embeds=embedded, layout=layout, use_cache=False, position_ids=torch.arange(IDS.shape[1])[None]
        )[0]
    hidden.float().square().sum().backward()
    found = {name: p.grad.clone() for name, p in roles.named_parameters() if p.grad is not None}
    roles.zero_grad()
    assert embedded.grad is not None
    return {"hidden": hidden.detach(), "embedded": embedded.grad, **found}


def assert_equal(roles: Roles, role: str, tolerance: float) -> None:
    fused, peft = (values_and_gradients(roles, role, fused) for fused in (True, False))
    assert set(fused) == set(peft)
    assert len(fused) > 10
    for key, value in peft.items():
        torch.testing.assert_close(fused[key], value, rtol=tolerance, atol=tolerance, msg=key)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gemma3", "gpt2"])
def test_fused_equals_peft(name: str, stacked: bool) -> None:
    roles = make_roles(name, adapters=("policy", "parent"))
    roles.assign("both", ["parent", "policy"])
    roles.train_only("policy")
    assert_equal(roles, "both" if stacked else "policy", 1e-9)


def test_adapters_on_some_of_the_layers_that_read_together() -> None:
    """Query and value alone in one adapter, key in another: what an adapter leaves out stays the base's."""
    roles = Roles(make_base())
    for name, targets in (("policy", ["q_proj", "v_proj", "up_proj"]), ("other", ["k_proj", "o_proj"])):
        roles.add_adapter(name, lora_config(4, 8, targets, 0.0, roles.base))
        randomise(roles, name)
    roles.assign("both", ["other", "policy"])
    roles.assign("policy", ["policy"])
    for role in ("both", "policy"):
        roles.train_only("policy")
        assert_equal(roles, role, 1e-9)


def test_a_base_in_4_bits(tmp_path: Path) -> None:
    """The same weights, dequantised once in the forward and once in the backward, as bitsandbytes does it."""
    save_model(make_base(dtype=torch.float32), tmp_path, "fp32", {"stop_ids": [2], "pad_token_id": 0})
    train_tokenizer(["a b c"], 90, 64).save_pretrained(tmp_path)
    roles = Roles(load_base(tmp_path, quantize="nf4", dtype=torch.float32))
    roles.add_adapter("policy", lora_config(4, 8, "all-linear", 0.0, roles.base))
    randomise(roles, "policy")
    roles.assign("policy", ["policy"])
    roles.train_only("policy")
    assert all("forward" in vars(layer) for layer in roles.base.modules() if isinstance(layer, LoraLayer))
    assert_equal(roles, "policy", 1e-4)


def test_fp32_adapters_beside_a_bf16_base() -> None:
    """Factors are rounded to bf16 for the products: one layer, and the gradients of its factors, are about as close to
    fp64 as PEFT's."""
    roles = Roles(make_base(dtype=torch.bfloat16))
    roles.add_adapter("policy", lora_config(4, 8, "all-linear", 0.0, roles.base))
    for seed, p in enumerate(roles.adapter_parameters("policy")):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) * 0.2
    roles.assign("policy", ["policy"])
    roles.train_only("policy")
    decoder: Any = roles.base.base_model
    layer = decoder.layers[0].mlp.down_proj
    a, b = layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
    x = torch.randn(50, a.shape[1]).bfloat16()
    up = torch.randn(50, b.shape[0]).bfloat16()

    def run(forward: Any) -> tuple[Tensor, ...]:
        with roles.use("policy"):
            out = forward(x)
        return out.detach(), *torch.autograd.grad((out * up).sum(), [a, b])

    assert a.dtype == torch.float32
    ours, peft = run(layer.forward), run(lambda x: type(layer).forward(layer, x))
    wide, down, upward = x.double(), a.detach().double(), b.detach().double()
    true = wide @ layer.base_layer.weight.double().T + 2 * (wide @ down.T) @ upward.T
    truth = (true, 2 * (up.double() @ upward).T @ wide, 2 * up.double().T @ (wide @ down.T))
    for got, theirs, want in zip(ours, peft, truth, strict=True):
        errors = [float((t.double() - want).norm() / want.norm()) for t in (got, theirs)]
        assert errors[0] < max(2 * errors[1], 0.006) and errors[0] > 0, errors
    # control: adapters matter
    assert (ours[0].double() - wide @ layer.base_layer.weight.double().T).norm() / true.norm() > 0.05


def test_it_is_the_fused_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the comparison: one that scales wrongly is found. Four calls a layer: query, key and value
    read the same x, and so do gate and up. Only plain linear layers take it."""
    roles = make_roles(adapters=("policy",))
    roles.train_only("policy")
    before = values_and_gradients(roles, "policy", True)
    right, calls = _LoraLinears.apply, []

    def wrong(x: Tensor, origin: Any, outputs: list[Output], *factors: Tensor) -> Any:
        calls.append(len(outputs))
        return right(x, origin, [Output(o.base, tuple(2 * s for s in o.scalings)) for o in outputs], *factors)

    monkeypatch.setattr(_LoraLinears, "apply", wrong)
    assert (values_and_gradients(roles, "policy", True)["hidden"] - before["hidden"]).abs().max() > 1e-3
    assert calls == [3, 1, 2, 1] * 2
    conv = make_roles("gpt2", adapters=("policy",))
    assert not any("forward" in vars(layer) for layer in conv.base.modules() if isinstance(layer, LoraLayer))


def test_what_is_ready_is_for_the_same_tensor_alone() -> None:
    """A layer called with another tensor, or with one that was changed meanwhile, computes anew."""
    roles = make_roles(adapters=("policy",))
    decoder: Any = roles.base.base_model
    attention = decoder.layers[0].self_attn
    x, y = torch.randn(1, 5, 32).double(), torch.randn(1, 5, 32).double()
    with torch.no_grad(), roles.use("policy"):
        plain = lambda layer, t: type(layer).forward(layer, t)  # noqa: E731
        attention.q_proj(x)
        torch.testing.assert_close(attention.k_proj(y), plain(attention.k_proj, y))
        attention.q_proj(x)
        x += 1
        torch.testing.assert_close(attention.k_proj(x), plain(attention.k_proj, x))
        assert torch.equal(attention.k_proj(x), attention.k_proj(x))


def test_gradcheck() -> None:
    torch.manual_seed(0)
    base = lambda n: SimpleNamespace(weight=torch.randn(n, 4).double(), bias=torch.randn(n).double())  # noqa: E731
    outputs = [Output(base(3), (0.5, 2.0)), Output(base(5), (3.0,))]
    shapes = [(5, 4), (2, 4), (3, 2), (1, 4), (3, 1), (2, 4), (5, 2)]
    inputs = [torch.randn(shape).double().requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda x, *f: _LoraLinears.apply(x, None, outputs, *f), inputs)
