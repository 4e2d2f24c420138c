"""A method that adapts a base is one entry in `adapters.methods.METHODS`: here a throw-away one, PEFT's IA3 (Liu et al.
2022, arXiv 2205.05638), goes through the doors that LoRA goes through."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from peft.tuners.ia3 import IA3Layer
from torch import Tensor

from align.adapters import methods
from align.adapters.methods import METHODS, Method, config_of, method_of, of_adapter
from align.adapters.targets import adaptable, ends
from align.ground.errors import InputError
from align.measures.passes import flat_logprobs
from align.models import reloads_equal
from align.models.merged import MergedCopy
from align.models.roles import Roles
from align.training.start import added
from tests.models.models import make_base, make_roles, pairs
from tests.training.test_first_step import trained

SCALING = ("k_proj", "v_proj", "down_proj")


def ia3_config(settings: Any, model: Any) -> IA3Config:
    """Outputs of keys and values are scaled, and inputs of the last matrix of each feed-forward."""
    wanted = [name for name in adaptable(model).linears if name.endswith(SCALING)]
    modules = [name for name, _ in model.named_modules()]
    into = ends({name for name in wanted if name.endswith("down_proj")}, modules)
    return IA3Config(target_modules=ends(set(wanted), modules), feedforward_modules=into)


def ia3_read(folder: Path) -> IA3Config:
    config = IA3Config.from_pretrained(str(folder))
    config.inference_mode = False
    return config


def ia3_delta(layer: Any, name: str) -> Tensor:
    """W (s - 1), by rows, or by columns where inputs are scaled: s is (out, 1) or (1, in)."""
    return layer.get_base_layer().weight * (layer.ia3_l[name].detach() - 1)


IA3 = Method(
    peft_type="IA3",
    mark="ia3_",
    layer=IA3Layer,
    config=ia3_config,
    read=ia3_read,
    scale=lambda config: torch.ones(1),
    adds_nothing=lambda tensors: all(bool((t == 1).all()) for t in tensors.values()),
    delta=ia3_delta,
)


@pytest.fixture
def with_ia3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "ia3", IA3)


def logprobs(roles: Roles, role: str) -> Tensor:
    return torch.from_numpy(flat_logprobs(roles, role, pairs(), 256))


def fresh() -> Roles:
    roles = Roles(make_base())
    roles.add_adapter("policy", config_of(SimpleNamespace(method="ia3"), roles.base))  # type: ignore[arg-type]
    roles.assign("policy", ["policy"])
    return roles


def test_a_method_is_one_entry(with_ia3: None, tmp_path: Path) -> None:
    """A fresh adapter changes nothing, one step trains it and not the base, and it is saved, read by PEFT and by a
    second base, and merged to the same log-probs."""
    roles = fresh()
    at_start = logprobs(roles, "policy")
    torch.testing.assert_close(at_start, logprobs(roles, "base"), rtol=0, atol=1e-6)
    assert added(roles, "policy") == []
    whole = {name: p.clone() for name, p in roles.base_parameters()}
    trained(tmp_path / "run", roles=roles)
    after = logprobs(roles, "policy")
    assert (after - at_start).abs().max() > 1e-3 and len(added(roles, "policy")) == 1
    assert all(torch.equal(p, whole[name]) for name, p in roles.base_parameters())
    assert whole.keys() == {name for name, _ in make_base().named_parameters()}

    roles.save_adapter("policy", tmp_path / "saved", "base")
    state = roles.adapter_state("policy")
    reloads_equal.check_adapter(tmp_path / "saved", state, roles.adapter_config("policy", "base"))
    again = Roles(make_base())
    again.load_adapter("copy", tmp_path / "saved")
    again.assign("policy", ["copy"])
    assert all(torch.equal(t, again.adapter_state("copy")[name]) for name, t in state.items())
    assert torch.equal(logprobs(again, "policy"), after)
    peft = PeftModel.from_pretrained(make_base(), str(tmp_path / "saved"))
    assert sum(bool((p != 1).any()) for name, p in peft.named_parameters() if "ia3_l" in name) == len(state)

    merged = Roles(MergedCopy(roles, "policy").merged())
    torch.testing.assert_close(logprobs(merged, "base"), after, rtol=0, atol=1e-5)
    # negative control: the base is not what was merged
    assert (logprobs(Roles(make_base()), "base") - after).abs().max() > 1e-3


def test_without_its_entry_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "ia3", IA3)
        fresh().save_adapter("policy", tmp_path / "saved", "base")
    with pytest.raises(InputError, match="IA3"):
        Roles(make_base()).load_adapter("copy", tmp_path / "saved")
    assert not of_adapter("layers.0.k_proj.ia3_l.policy")


def test_every_method_names_its_tensors_and_no_others() -> None:
    """Of a base with an adapter of each method, exactly what the bare base has is not an adapter's."""
    roles, bare = make_roles(), make_base()
    assert {name for name, _ in roles.base_parameters()} == {name for name, _ in bare.named_parameters()}
    assert not any(of_adapter(name) for name, _ in bare.named_parameters())
    assert method_of(LoraConfig()) is METHODS["lora"] and methods.layers() == (METHODS["lora"].layer,)
    assert adaptable(roles.base) == adaptable(bare)
