"""The code that `align show` prints, run as it is printed, gives what the stage trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import align
from align import merge, models, packed, reward, sft
from align.data.examples import Example
from align.inputs.bases import locate_base
from align.models.heads import ScoreHead
from align.models.roles import Roles
from align.stage.on_base import adapter_folders
from align.store import Artifact, Store
from tests.conftest import Pipeline, run_align

# PEFT 0.21 reads the old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = list(range(5, 29))


def shown(store: Store, name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the Align code and the plain code define, after the commands between them were run."""
    text = run_align("show", name, "--store", store.path, cwd=folder).stdout
    align_part, _, rest = text.partition("Load it with Align:\n")[2].partition("\n\nLoad it with ")
    commands, _, code = rest.partition("\n\n")
    for line in commands.splitlines()[1:]:
        command, *words = line.split()
        assert command == "align"
        run_align(*words, "--store", store.path, cwd=folder)
    found: list[dict[str, Any]] = [{}, {}]
    for part, namespace in zip((align_part, code), found, strict=True):
        exec("\n".join(line[2:] for line in part.splitlines()), namespace)
    return found[0], found[1]


def role_of(artifact: Artifact, store: Store, place: str = "") -> Roles:
    """The artifact as role "policy", as stages load it; `place` is the folder of another role inside it."""
    assert artifact.base
    base = locate_base(artifact.base, store)
    roles = Roles(models.base.load_base(base.path, quantize=base.quantize, dtype=torch.float32))
    folder = store.folder(artifact) / place
    for i, adapter in enumerate(adapter_folders(folder)):
        roles.load_adapter(f"a{i}", adapter)
    head = ScoreHead.load(folder / "head.safetensors") if (folder / "head.safetensors").exists() else None
    roles.assign("policy", list(roles.configs), head)
    return roles


@torch.no_grad()
def logits_of(roles: Roles) -> Tensor:
    return roles.base.get_output_embeddings()(roles.hidden_as("policy", batch()))


def batch() -> Any:
    return packed.pack.pack([Example((IDS,), ([False] + [True] * (len(IDS) - 1),))])


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=torch.tensor([IDS])).logits[0]


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found.float(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo", "reward"])
@torch.no_grad()
def test_adapters(name: str, trained: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy by its logits; a reward by its scores; PPO's values, after which the policy is active again."""
    monkeypatch.chdir(tmp_path)
    store, artifact = trained.store, trained.made[name]
    by_align, by_hand = shown(store, f"tiny/{name}", tmp_path)
    expected = logits_of(role_of(artifact, store))
    assert close(logits(by_align["model"]), expected) and close(logits(by_hand["model"]), expected)
    parent = trained.made["pretrain" if name == "sft" else "sft"]
    other = logits(align.load(parent, store)[0])
    assert not close(other, expected)  # negative control
    text = by_hand["tokenizer"].apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert (
        text == by_align["tokenizer"].apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        and "Hi" in text
    )
    if name == "reward":
        expected = role_of(artifact, store).scores("policy", batch())
        assert close(by_hand["score"](torch.tensor([IDS])), expected) and expected.abs().max() > 1e-3
    if name == "ppo":
        value = role_of(artifact, store, "value")
        expected = value.heads["policy"](value.hidden_as("policy", batch()))
        found = by_hand["values"](torch.tensor([IDS]))
        assert close(found[0], expected) and expected.abs().max() > 1e-3
        assert close(logits(by_hand["model"]), logits_of(role_of(artifact, store)))


def test_a_merged_model(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    merge.run(merge.Config(parent="tiny/dpo", precision="fp32", threads=1, name="merged"), pipeline.store)
    by_align, by_hand = shown(pipeline.store, "merged", tmp_path)
    expected = logits_of(role_of(pipeline.made["dpo"], pipeline.store))
    assert close(logits(by_align["model"]), expected) and close(logits(by_hand["model"]), expected)
    assert by_hand["tokenizer"].eos_token == "<|end|>"


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_quantised_base(quantize: str, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder: the code names it where this store last saw it."""
    monkeypatch.chdir(tmp_path)
    # its kernel for such CPUs fails on layers of width 16
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    base = pipeline.store.materialise(pipeline.made["pretrain"], tmp_path / "base", "model")
    common: dict[str, Any] = {"precision": "fp32", "threads": 1, "max_steps": 2, "learning_rate": 0.01}
    data = pipeline.recipe.parent
    sft.run(
        sft.Config(base={"model": base, "quantize": quantize}, data=data / "sft.jsonl", name="q/sft", **common),
        pipeline.store,
    )  # type: ignore[arg-type]
    made = reward.run(
        reward.Config(
            parent="q/sft",
            data=data / "pairs.jsonl",
            name="q/reward",
            centre_samples=0,
            head_learning_rate=0.05,
            **common,
        ),
        pipeline.store,
    )  # type: ignore[arg-type]
    by_align, by_hand = shown(pipeline.store, "q/reward", tmp_path)
    role = role_of(made, pipeline.store)
    expected = logits_of(role)
    for found in (by_align["model"], by_hand["model"]):
        assert torch.allclose(logits(found).float(), expected, atol=2e-3, rtol=0)
    with torch.no_grad():
        scores = role.scores("policy", batch())
        assert torch.allclose(by_hand["score"](torch.tensor([IDS])), scores, atol=1e-3) and scores.abs().max() > 3e-3
    unquantised = role_of(pipeline.made["reward"], pipeline.store)
    # negative control: the adapter on the base as it was
    for i, adapter in enumerate(adapter_folders(pipeline.store.folder(made))):
        unquantised.load_adapter(f"b{i}", adapter)
    unquantised.assign("policy", [f"b{i}" for i in range(i + 1)])
    assert not torch.allclose(logits_of(unquantised), expected, atol=2e-3, rtol=0)
