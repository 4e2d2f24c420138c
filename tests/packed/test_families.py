"""docs/families.md is what is found; and the parts that make families exact, each against an independent truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from align.adapters.targets import adaptable, ends, left_out, lora_config
from align.ground.errors import InputError
from align.inputs.bases import BaseModel, check_length
from align.models.base import load_base
from align.models.merged import MergedCopy
from align.models.roles import Roles
from align.packed import padding
from align.packed.pack import pack
from align.sampling import rollout
from align.sampling.rollout import Sampler
from tests.models.families import HEAD, examine, logprobs, plain, rows
from tests.models.family_models import FAMILIES, QUICK, ROOT, build

PAGE = ROOT / "docs/families.md"
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, about its models
EXPERTS = (
    "Mixtral",
    "Qwen2-MoE",
    "Qwen3-Next",
    "OLMoE",
    "Granite-MoE",
    "MiniMax-M2",
    "DeepSeek-V2",
    "GLM-4-MoE",
    "Phi-MoE",
    "Llama 4 text",
)


def check_row(name: str, folder: Path) -> None:
    found = examine(name, folder)
    assert not found.inexact
    assert found.row(name) in PAGE.read_text(encoding="utf-8").splitlines(), (
        "run python -m tests.models.families > docs/families.md"
    )


def test_the_page_has_every_family() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.startswith(HEAD) and set(QUICK) < set(FAMILIES)
    assert [line.split(" | ")[0].removeprefix("| ") for line in page.removeprefix(HEAD).splitlines()] == list(FAMILIES)


@pytest.mark.parametrize("name", QUICK)
def test_a_family_of_each_kind(name: str, tmp_path: Path) -> None:
    check_row(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in QUICK])
def test_the_other_families(name: str, tmp_path: Path) -> None:
    check_row(name, tmp_path)


@pytest.mark.parametrize(
    "name", ["Qwen3-MoE", "gpt-oss", "DeepSeek-V3", *(pytest.param(name, marks=pytest.mark.slow) for name in EXPERTS)]
)
def test_adapters_of_experts(name: str, tmp_path: Path) -> None:
    """Two on one base, either way that families lay matrices out, each exact."""
    found = examine(name, tmp_path, experts=True)
    assert not found.inexact and found.adapts.endswith(", with experts")


def base_of(name: str, folder: Path) -> Any:
    build(name, folder)
    return load_base(folder, quantize=None, dtype=torch.float32)


def test_ends_are_as_short_as_they_may_be() -> None:
    """Hand values: `0` would also mean a layer, `q` also the tower's; what is alone keeps its last part."""
    names = {"m.layers.0", "m.layers.0.q", "m.layers.0.up", "m.layers.0.list.0", "tower.layers.0.q", "m.layers.0.list"}
    assert ends({"m.layers.0.q", "m.layers.0.up", "m.layers.0.list.0"}, names) == ["list.0", "m.layers.0.q", "up"]
    assert ends({"m.layers.0.q", "tower.layers.0.q"}, names) == ["q"]


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("lm_head", "it is the head"),
        ("embed_tokens", "it names no linear layer"),
        ("input_layernorm", "it names no linear layer"),
        ("self_attn", "it names no linear layer"),
        ("query", "it names no linear layer"),
        ("", "it is empty"),
        ("vision_tower.encoder.layers.0.mlp.fc1", "reading text does not call it"),
    ],
)
def test_targets_that_cannot_be_adapted(target: str, why: str, tmp_path: Path) -> None:
    model = base_of("Gemma 3", tmp_path)
    with pytest.raises(
        InputError,
        match=rf"adapter.targets: {target!r} cannot be adapted in \w+: {why}.*It has down_proj, gate_proj, k_proj",
    ):
        lora_config(4, 8, ["q_proj", target], 0.0, model)
    lora_config(4, 8, ["q_proj"], 0.0, model)  # control


@pytest.mark.parametrize(
    ("name", "target", "why"),
    [
        ("Mamba 2", "out_proj", "PEFT refuses it in this family"),
        ("DeepSeek-V3", "gate_proj", "PEFT takes its name for the routed experts'"),
        ("Phi-MoE", "router", "reading text does not call it as a linear layer"),
        ("Zamba 2", "q_proj", "it shares its matrix with another layer"),
    ],
)
def test_targets_that_a_family_forbids(name: str, target: str, why: str, tmp_path: Path) -> None:
    model = base_of(name, tmp_path)
    with pytest.raises(InputError, match=f"{target!r} cannot be adapted in .*{why}"):
        lora_config(4, 8, [target], 0.0, model)


def test_a_name_in_the_tower_too_means_the_decoder_alone(tmp_path: Path) -> None:
    roles = Roles(base_of("Gemma 3", tmp_path))
    roles.add_adapter("policy", lora_config(4, 8, ["q_proj"], 0.0, roles.base))
    adapted = [name for name, module in roles.base.named_modules() if hasattr(module, "lora_A")]
    assert len(adapted) == 2 and all("language_model" in name for name in adapted)
    assert any("vision_tower" in name and name.endswith("q_proj") for name, _ in roles.base.named_modules())  # control


@pytest.mark.parametrize("name", ["Gemma 3n text", "Zamba 2", "Qwen3-MoE"])
def test_upper_layers_alone(name: str, tmp_path: Path) -> None:
    """`layers: 1` adapts nothing outside the last layer, whatever its names look like."""
    roles = Roles(base_of(name, tmp_path))
    roles.add_adapter("policy", lora_config(4, 8, "all-linear", 0.0, roles.base, layers=1, experts=name == "Qwen3-MoE"))
    last = roles.base.config.num_hidden_layers - 1
    keys = [key for key, _ in roles.base.named_parameters() if "lora_" in key]
    assert keys and all(f".layers.{last}." in key for key in keys)


def test_experts_where_there_are_none_or_dropout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no routed experts; leave it out"):
        lora_config(4, 8, "all-linear", 0.0, base_of("Llama", tmp_path / "a"), experts=True)
    with pytest.raises(InputError, match=r"dropout is 0\.1, which adapters of experts cannot have"):
        lora_config(4, 8, "all-linear", 0.1, base_of("Mixtral", tmp_path / "b"), experts=True)


def test_the_share_that_is_adapted_is_told(tmp_path: Path) -> None:
    """Mixtral by hand: per layer 64 (64 + 32 + 32 + 64) in attention, 4 (192 + 96) 64 in experts, 4 x 64 in the
    router."""
    model = base_of("Mixtral", tmp_path)
    config = lora_config(4, 8, "all-linear", 0.0, model)
    attention, others = 64 * 192, 4 * 288 * 64 + 4 * 64
    assert left_out(model, config).startswith(
        f"adapts {attention / (attention + others):.0%} of the matrices: routed experts are left out"
    )
    assert left_out(model, lora_config(4, 8, "all-linear", 0.0, model, experts=True)) == ""
    assert len(adaptable(model).experts) == 4


@pytest.mark.parametrize("name", ["DeepSeek-V3", "gpt-oss"])
def test_a_merged_copy_of_experts_leaves_the_base_alone(name: str, tmp_path: Path) -> None:
    """No module becomes its own child, adapters on others are plain, and the base computes what it did."""
    roles = Roles(base_of(name, tmp_path))
    ids = torch.arange(3, 20)[None]
    for adapter in ("policy", "other"):
        roles.add_adapter(adapter, lora_config(4, 8, "all-linear", 0.0, roles.base, experts=True))
        roles.assign(adapter, [adapter])
        for parameter in roles.adapter_parameters(adapter):
            parameter.data.normal_(0, 0.1)
    batch = pack([next(rows(80))])
    before = {role: roles.logprobs(role, batch) for role in ("base", "policy", "other")}
    copied = MergedCopy(roles, "policy")
    merged = copied.merged()
    copied.drop()
    merged = copied.merged()
    assert not any(hasattr(module, "lora_A") for module in merged.modules())
    assert sum(1 for _ in roles.base.named_modules()) < 500  # a cycle would have ended in a RecursionError
    for role, want in before.items():
        assert torch.equal(roles.logprobs(role, batch), want)
    assert (before["policy"] - before["other"]).abs().max() > 1e-2  # control
    with torch.no_grad():
        assert (merged.base_model.get_input_embeddings()(ids) == roles.base.get_input_embeddings()(ids)).all()


def test_experts_under_activation_checkpointing(tmp_path: Path) -> None:
    """PEFT changes a module's class while an expert's update is on: recomputing in the backward gives the same
    gradients."""
    roles = Roles(base_of("Qwen3-MoE", tmp_path))
    roles.add_adapter("policy", lora_config(4, 8, "all-linear", 0.0, roles.base, experts=True))
    roles.assign("policy", ["policy"])
    for parameter in roles.adapter_parameters("policy"):
        parameter.data.normal_(0, 0.05)
    roles.train_only("policy")
    batch = pack(list(rows(80)))

    def gradients() -> dict[str, torch.Tensor]:
        roles.zero_grad()
        roles.logprobs("policy", batch).sum().backward()
        return {k: p.grad.clone() for k, p in roles.named_parameters() if p.grad is not None}

    kept = gradients()
    roles.enable_activation_checkpointing()
    again = gradients()
    assert any("experts" in key for key in kept) and set(kept) == set(again)
    for key, grad in kept.items():
        torch.testing.assert_close(again[key], grad, atol=1e-5, rtol=1e-4)


def test_adapters_of_experts_on_disk(tmp_path: Path) -> None:
    """What is saved loads as another role with the same outputs; two that adapt different experts are refused."""
    roles = Roles(base_of("Qwen3-MoE", tmp_path / "base"))
    roles.add_adapter("policy", lora_config(4, 8, "all-linear", 0.0, roles.base, experts=True))
    roles.assign("policy", ["policy"])
    for parameter in roles.adapter_parameters("policy"):
        parameter.data.normal_(0, 0.05)
    roles.save_adapter("policy", tmp_path / "adapter", "base")
    roles.load_adapter("again", tmp_path / "adapter")
    roles.assign("again", ["again"])
    batch = pack(list(rows(80)))
    assert torch.equal(roles.logprobs("again", batch), roles.logprobs("policy", batch))
    assert not torch.equal(roles.logprobs("base", batch), roles.logprobs("policy", batch))  # control
    shape = tmp_path / "adapter/adapter_config.json"
    shape.write_text(shape.read_text().replace("experts.down_proj", "q_proj.weight"))
    with pytest.raises(InputError, match="which is no matrix of routed experts"):
        roles.load_adapter("wrong", tmp_path / "adapter")
    with pytest.raises(InputError, match="two adapters on this base adapt different experts"):
        roles.add_adapter("upper", lora_config(4, 8, "all-linear", 0.0, roles.base, layers=1, experts=True))


def test_rows_that_disturb_each_other_are_sampled_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RWKV mixes the rows of a batch after the first token: samples' log-probs are the model's one by one, and are not
    all together."""
    build("RWKV-4, up to 6 layers", tmp_path)
    model = plain(tmp_path)

    def gap() -> float:
        roles = Roles(load_base(tmp_path, quantize=None, dtype=torch.float32))
        torch.manual_seed(0)
        prompts = [[5, 6, 7, 8], [9, 10]]
        answers = Sampler(roles, "base", [1], 2)(prompts, n=2, max_new_tokens=8, temperature=1.0)
        assert [len(several) for several in answers] == [2, 2]
        pairs = [(p, a) for p, several in zip(prompts, answers, strict=True) for a in several]
        with torch.no_grad():
            return max(
                float((logprobs(model, p + a.ids, len(p)) - torch.tensor(a.logprobs)).abs().max()) for p, a in pairs
            )

    assert gap() < 1e-5
    monkeypatch.setattr(rollout, "rows_together", lambda *_: "all")
    assert gap() > 0.1  # negative control


def test_what_looks_ahead_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = Roles(base_of("Bloom", tmp_path)).base
    padding.check_padded(model)
    forward = type(model.base_model).forward

    def looks_ahead(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.last_hidden_state = out.last_hidden_state + out.last_hidden_state.mean(1, keepdim=True)
        return out

    monkeypatch.setattr(type(model.base_model), "forward", looks_ahead)
    with pytest.raises(InputError, match="it is not a decoder that reads from left to right"):
        padding.check_padded(model)


@pytest.mark.parametrize(
    ("name", "length"),
    [("Llama", 256), ("Phi-3, longrope", 80), ("Bloom", 1 << 30), ("MPT", 256), ("GPT-2", 256), ("RWKV-4", 256)],
)
def test_context_length(name: str, length: int, tmp_path: Path) -> None:
    """Longrope's is the original context: beyond it transformers computes the first tokens otherwise too."""
    build(name, tmp_path)
    base = BaseModel(name, None, "0", None, tmp_path)
    assert base.context == length
    check_length(base, 80)
    if name == "Phi-3, longrope":
        with pytest.raises(
            InputError,
            match=r"max_length is 81, but beyond 80 tokens Phi-3, longrope computes with other rotary factors",
        ):
            check_length(base, 81)
    else:
        check_length(base, 10**6)
    if name == "Phi-3, longrope":
        model, ids = plain(tmp_path), torch.arange(3, 100)[None]
        with torch.no_grad():
            short, at, beyond = (model(input_ids=ids[:, :n], use_cache=False).logits[0, :20] for n in (30, 80, 90))
        assert (short - at).abs().max() < 1e-4 < 1e-2 < (short - beyond).abs().max()
