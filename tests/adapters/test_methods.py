"""Methods that adapt a base: each goes through the doors that LoRA goes through, is what PEFT's own model computes, and
is one entry in `adapters.methods.METHODS`, as a throw-away one shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import peft
import pytest
import torch
from peft import LoraConfig
from peft.tuners.peanut import PeanutLayer
from torch import Tensor

from align.adapters import methods
from align.adapters.methods import METHODS, Method, config_of, method_of, of_adapter
from align.adapters.targets import adaptable, places
from align.exchange import foreign
from align.folders import adapter, adapter_kinds
from align.folders.adapter import LORA_KIN, check_folder, method_name, peft_names
from align.folders.adapter_kinds import Kind
from align.ground.errors import InputError
from align.measures.passes import flat_logprobs
from align.models import adapted, reloads_equal
from align.models.merged import MergedCopy
from align.models.roles import Roles
from align.recipe import Adapter
from align.recipe.adapters import READS, MethodName
from align.training.checks.start import added, same_weights
from tests.models.models import make_base, make_roles, pairs
from tests.training.test_first_step import trained

ROWS = [[1, 5, 9, 33, 7, 8, 9, 10, 4], [3, 60, 61, 62, 2]]
SMALL: dict[str, Any] = dict(rank=4, block_size=16, frequencies=40)
STEPS = {"adalora": 2}
"""Steps that a method takes at least."""
QUICK = ("lora", "dora", "adalora", "ia3", "oft", "ln_tuning")
# PEFT 0.21 reads the old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def logprobs(roles: Roles, role: str) -> Tensor:
    return torch.from_numpy(flat_logprobs(roles, role, pairs(), 256))


def fresh(settings: Any) -> Roles:
    roles = Roles(make_base())
    roles.add_adapter("policy", config_of(settings, roles.base))
    roles.assign("policy", ["policy"])
    return roles


def check_method(settings: Any, folder: Path) -> None:
    """A fresh adapter changes nothing, one step trains it and not the base; it is saved, read by a second role of the
    same base and by a second base, merged, and computed as PEFT computes it."""
    roles = fresh(settings)
    at_start = logprobs(roles, "policy")
    torch.testing.assert_close(at_start, logprobs(roles, "base"), rtol=0, atol=1e-5)
    assert added(roles, "policy") == []
    whole = {name: p.clone() for name, p in roles.base_parameters()}
    trained(folder / "run", roles=roles, learning_rate=0.02, steps=STEPS.get(settings.method, 1))
    after = logprobs(roles, "policy")
    assert (after - at_start).abs().max() > 1e-3 and len(added(roles, "policy")) == 1
    assert all(torch.equal(p, whole[name]) for name, p in roles.base_parameters())
    assert whole.keys() == {name for name, _ in make_base().named_parameters()}

    roles.save_adapter("policy", folder / "saved", "base")
    state = roles.adapter_state("policy")
    reloads_equal.check_adapter(folder / "saved", state, roles.adapter_config("policy", "base"))
    again = Roles(make_base())
    again.load_adapter("reloaded", folder / "saved")
    again.assign("policy", ["reloaded"])
    assert all(torch.equal(t, again.adapter_state("reloaded")[name]) for name, t in state.items())
    assert torch.equal(logprobs(again, "policy"), after)
    roles.load_adapter("second", folder / "saved")
    roles.assign("reference", ["second"])
    assert same_weights(roles, "policy", "reference") and torch.equal(logprobs(roles, "reference"), after)

    foreign.check_as_peft(roles, "policy", ROWS, *foreign.by_peft(make_base(), folder / "saved", ROWS), "here")
    merged = Roles(MergedCopy(roles, "policy").merged())
    torch.testing.assert_close(logprobs(merged, "base"), after, rtol=0, atol=2e-5)
    # negative controls: the base is not what was merged, and another step is another adapter
    assert (logprobs(Roles(make_base()), "base") - after).abs().max() > 1e-3
    trained(folder / "more", roles=roles, learning_rate=0.02, steps=STEPS.get(settings.method, 1))
    assert not same_weights(roles, "policy", "reference")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in METHODS]
)
def test_a_method(name: str, tmp_path: Path) -> None:
    check_method(Adapter(method=name, **SMALL), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *(pytest.param(name, "llama", marks=() if name in QUICK else pytest.mark.slow) for name in METHODS),
        ("ln_tuning", "gpt2"),
    ],
)
def test_a_base_in_16_bits(name: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of adapters are fp32 there, and a fresh one still changes nothing but by rounding."""

    def answers() -> tuple[Tensor, Tensor]:
        roles = Roles(make_base(family).to(torch.bfloat16))
        roles.add_adapter("policy", config_of(Adapter(method=name, **SMALL), roles.base))  # type: ignore[arg-type]
        roles.assign("policy", ["policy"])
        assert {p.dtype for p in roles.adapter_parameters("policy")} == {torch.float32}
        return logprobs(roles, "policy"), logprobs(roles, "base")

    torch.testing.assert_close(*answers(), rtol=0, atol=0.2)
    if (
        name in ("delora", "ln_tuning") and family == "llama"
    ):  # negative control: the base alone would not take what these give
        monkeypatch.setattr(adapted, "compute_as_base", lambda base, name: None)
        with pytest.raises(RuntimeError, match="type"):
            answers()


class Settings:
    """What `config_of` reads of a method that `Adapter` does not know."""

    method, rank, targets, layers = "peanut", 4, "all-linear", None


PEANUT = Method(
    "PEANUT",
    ".peanut_",
    PeanutLayer,
    lambda settings, model: peft.PeanutConfig(
        r=settings.rank, target_modules=places(settings.targets, model, settings.layers).modules
    ),
)
FOLDER = Kind(
    {"init_weights": (lambda v: v is True, "true"), "r": adapter_kinds.SIZE}
    | dict.fromkeys(("depth", "act_fn", "scaling"), (lambda v: True, "as it is")),
    ("peanut_A.weight", "peanut_B.weight", "peanut_A", "peanut_B"),
)


def test_a_method_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here PEANuT (arXiv 2410.01870): an entry of `METHODS`, and what its folder may hold."""
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "peanut", PEANUT)
        patch.setitem(adapter_kinds.KINDS, "PEANUT", FOLDER)
        patch.setattr(adapter, "PEFT_TYPES", (*adapter.PEFT_TYPES, "PEANUT"))
        check_method(Settings(), tmp_path)
    with pytest.raises(InputError, match="peft_type is 'PEANUT'; adapters that can be loaded are LORA, IA3"):
        Roles(make_base()).load_adapter("reloaded", tmp_path / "saved")
    assert not of_adapter("layers.0.k_proj.peanut_A.policy")


def test_every_method_is_named_where_it_is_asked_for() -> None:
    """The settings, the entries and the folders know the same methods."""
    assert list(METHODS) == list(get_args(MethodName)) and READS.keys() == METHODS.keys()
    assert {method.peft_type for method in METHODS.values()} == {*adapter.PEFT_TYPES}
    for name, method in METHODS.items():
        assert peft_names(name)["peft_type"] == method.peft_type and method_name(peft_names(name)) == name
        assert (method.peft_type == "LORA") == (name in LORA_KIN)


def test_every_method_names_its_tensors_and_no_others() -> None:
    """Of a base with an adapter of each method, exactly what the bare base has is not an adapter's."""
    roles, bare = make_roles(), make_base()
    assert {name for name, _ in roles.base_parameters()} == {name for name, _ in bare.named_parameters()}
    assert not any(of_adapter(name) for name, _ in bare.named_parameters())
    assert method_of(LoraConfig()) is METHODS["lora"] and methods.layers()[0] is METHODS["lora"].layer
    assert adaptable(roles.base) == adaptable(bare)


@pytest.mark.parametrize("name", ["dora", "oft", "ia3"])
def test_layers_and_targets(name: str, tmp_path: Path) -> None:
    """`targets` and `layers` mean the same layers as with LoRA."""
    settings = {"targets": ["q_proj", "v_proj"]} | ({} if name == "ia3" else {"layers": 1})
    held = {}
    for method in ("lora", name):
        roles = fresh(Adapter(method=method, **SMALL, **settings))  # type: ignore[arg-type]
        keys = (key for key, _ in roles.named_parameters() if of_adapter(key))
        held[method] = {".".join(key.split(".")[:6]) for key in keys}
    assert held[name] == held["lora"] and len(held[name]) == (4 if name == "ia3" else 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "oft", "block_size": 5}, "adapter.block_size is 5, which does not divide the widths of .* in"),
        ({"method": "road", "block_size": 64}, "does not divide the widths of .* out"),
        ({"method": "lokr", "targets": ["nosuch"]}, "'nosuch' cannot be adapted"),
        ({"method": "miss", "rank": 1000}, "adapter.rank is 1000, and .* has room for"),
        ({"method": "fourierft", "frequencies": 10**9}, "adapter.frequencies is 1000000000, and .* has room for"),
        ({"method": "waveft", "frequencies": 10**9}, "adapter.frequencies is 1000000000, and .* has room for"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fresh(Adapter(**{**SMALL, **change}))


@pytest.mark.parametrize(
    ("name", "setting"), [("gralora", "rank"), ("hra", "rank"), ("road", "block_size"), ("oft", "block_size")]
)
def test_an_odd_size_is_refused(name: str, setting: str) -> None:
    """PEFT halves these; an HRA of odd rank would not start as the base. OFT turns nothing in blocks of one."""
    with pytest.raises(ValueError, match="greater than 1" if name == "oft" else f"{setting} is 7, and {name} needs an"):
        Adapter(method=name, **{setting: 1 if name == "oft" else 7})  # type: ignore[arg-type]
    Adapter(method="lora", rank=7)  # negative control


@pytest.mark.parametrize("name", ["loha", "oft"])
def test_a_transposed_matrix_is_refused(name: str) -> None:
    roles = Roles(make_base("gpt2"))
    with pytest.raises(InputError, match=f"adapter.method is {name}, but .* is a Conv1D"):
        config_of(Adapter(method=name, **SMALL), roles.base)  # type: ignore[arg-type]
    config_of(Adapter(method="dora", rank=4), roles.base)  # negative control


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("ia3", "feedforward_modules", "(a+)+$", "plain names of layers"),
        ("lokr", "rank_dropout", 0.5, "rank_dropout is 0.5; expected nothing"),
        ("oft", "coft", True, "coft is True"),
        ("hra", "modules_to_save", ["lm_head"], "modules_to_save is .*which Align does not compute"),
        ("fourierft", "n_frequency", 1 << 40, "n_frequency is"),
    ],
)
def test_a_folder_that_says_more_is_refused(name: str, key: str, value: object, said: str, tmp_path: Path) -> None:
    fresh(Adapter(method=name, **SMALL)).save_adapter("policy", tmp_path / "a", "base")  # type: ignore[arg-type]
    check_folder(tmp_path / "a")  # negative control
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=said):
        check_folder(tmp_path / "a")


def test_a_tensor_of_another_method_is_refused(tmp_path: Path) -> None:
    for name in ("hra", "miss"):
        fresh(Adapter(method=name, **SMALL)).save_adapter("policy", tmp_path / name, "base")
    (tmp_path / "hra/adapter_model.safetensors").write_bytes((tmp_path / "miss/adapter_model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"miss_block', which is no tensor of a HRA adapter"):
        check_folder(tmp_path / "hra")
