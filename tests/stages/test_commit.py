"""Committed only if it reloads equal: whatever happens to a file between its writing and its commit, the artifact is
refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align import merge, models
from align.ground.errors import AlignError
from align.store import Artifact, Store
from tests.conftest import Pipeline
from tests.stages.helpers import forget, run

Harm = Callable[[Path], None]


def kept(store: Store) -> set[str]:
    """What an artifact needs to be one: manifest, name, answer. Its files alone are nothing."""
    return {
        str(path)
        for room in ("artifacts", "refs", "asked")
        for path in (store.path / room).rglob("*")
        if path.is_file()
    }


@contextmanager
def refused(monkeypatch: pytest.MonkeyPatch, harms: dict[str, tuple[Harm, str]]) -> Iterator[list[str]]:
    """Inside, what a stage hands to the store is first harmed in every way, each of which must be refused by its
    message; then it is stored as it is, which must pass. Gives the ways that were tried."""
    put, tried = Store.put, []

    def harmed(self: Store, folder: Path, **kwargs: Any) -> Artifact:
        before = kept(self)
        for name, (harm, message) in harms.items():
            copy = shutil.copytree(folder, folder.with_name("harmed"))
            harm(copy)
            with pytest.raises(AlignError, match=message) as error:
                put(self, copy, **kwargs)
            assert str(error.value).endswith("Nothing was committed.") and kept(self) == before
            shutil.rmtree(copy)
            tried.append(name)
        return put(self, folder, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", harmed)
        yield tried
    assert tried == list(harms)


def tensors(path: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Harm:
    """Rewrite a safetensors file; `change` alters the tensors in place."""

    def harm(folder: Path) -> None:
        found = load_file(folder / path)
        change(found)
        (folder / path).unlink()
        save_file(found, folder / path, metadata={"format": "pt"})

    return harm


def one_bit(found: dict[str, torch.Tensor]) -> None:
    """The lowest bit of the last number of the last tensor: far below what any output shows."""
    last = sorted(found)[-1]
    found[last] = found[last].clone().reshape(-1)
    found[last][-1:].view(torch.int32).bitwise_xor_(1)


def flip(path: str) -> Harm:
    def change(found: dict[str, torch.Tensor]) -> None:
        shapes = {name: tensor.shape for name, tensor in found.items()}
        one_bit(found)
        found.update({name: tensor.reshape(shapes[name]) for name, tensor in found.items()})

    return tensors(path, change)


def cut(path: str) -> Harm:
    def harm(folder: Path) -> None:
        (folder / path).write_bytes((folder / path).read_bytes()[:-40])

    return harm


def words(path: str, change: Callable[[dict[str, Any]], Any]) -> Harm:
    """Rewrite a JSON file; `change` alters it in place."""

    def harm(folder: Path) -> None:
        found = json.loads((folder / path).read_text())
        change(found)
        (folder / path).write_text(json.dumps(found, indent=2) + "\n")

    return harm


def swap_two_words(found: dict[str, Any]) -> None:
    vocabulary = found["model"]["vocab"]
    vocabulary["?"], vocabulary["!"] = vocabulary["!"], vocabulary["?"]


def append(path: str, text: str) -> Harm:
    return lambda folder: (folder / path).write_text((folder / path).read_text() + text)  # type: ignore[return-value, func-returns-value]


def text_harms(folder: str) -> dict[str, tuple[Harm, str]]:
    return {
        "vocabulary": (
            words(f"{folder}/tokenizer.json", swap_two_words),
            f"{folder}: the stored tokenizer gives other ids on a probe text",
        ),
        "template": (
            append(f"{folder}/chat_template.jinja", "\n!"),
            f"{folder}: the stored tokenizer has another chat template",
        ),
        "no template": (
            lambda f: (f / folder / "chat_template.jinja").unlink(),
            "the stored tokenizer has another chat template",
        ),
        "eos": (
            words(f"{folder}/tokenizer_config.json", lambda c: c.update(eos_token=c["pad_token"])),
            f"{folder}: the stored tokenizer renders a probe dialogue in another way",
        ),
        "no tokenizer": (cut(f"{folder}/tokenizer.json"), f"{folder}: the stored tokenizer does not load"),
    }


def adapter_harms(folder: str) -> dict[str, tuple[Harm, str]]:
    weights, config = f"{folder}/adapter_model.safetensors", f"{folder}/adapter_config.json"
    first = r"base_model\.model\.|model\.layers\.0"
    return {
        f"{folder} bit": (flip(weights), rf"{weights}: model\.layers.*lora_.*weight does not reload equal"),
        f"{folder} empty": (
            tensors(weights, lambda t: t.update({k: torch.zeros(0) for k in t})),
            rf"{weights}: model\.layers.* does not",
        ),
        f"{folder} hollow": (
            tensors(weights, dict.clear),
            f"{weights} holds other tensors than the live model: 28 differ; {first}",
        ),
        f"{folder} key": (
            tensors(weights, lambda t: t.pop(min(t))),
            f"{weights} holds other tensors than the live model: 1 differ",
        ),
        f"{folder} cut": (cut(weights), rf"{weights} \([\d,]+ bytes\) cannot be read"),
        f"{folder} gone": (lambda f: (f / weights).unlink(), rf"{weights} \(missing\) cannot be read"),
        f"{folder} alpha": (
            words(config, lambda c: c.update(lora_alpha=80)),
            f"{config} does not reload equal: lora_alpha",
        ),
        f"{folder} no json": (lambda f: (f / config).write_text("{"), f"{config} does not reload equal: all of it"),
    }


def head_harms(path: str) -> dict[str, tuple[Harm, str]]:
    return {
        f"{path} bit": (flip(path), f"{path}: weight does not reload equal"),
        f"{path} bias": (tensors(path, lambda t: t["bias"].add_(1)), f"{path}: bias does not reload equal"),
        f"{path} gone": (lambda f: (f / path).unlink(), rf"{path} \(missing\) cannot be read"),
    }


@pytest.mark.parametrize(
    ("stage", "harms"),
    [
        ("sft", adapter_harms("adapters/0") | text_harms("tokenizer")),
        ("reward", head_harms("head.safetensors")),
        ("dpo", {"stack": (lambda f: shutil.rmtree(f / "adapters/1"), "holds 1 adapters, the policy has 2")}),
        ("ppo", adapter_harms("value/adapters/0") | head_harms("value/head.safetensors")),
    ],
)
def test_adapters_heads_and_tokenizers(
    stage: str, harms: dict[str, tuple[Harm, str]], pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(pipeline.store, pipeline.made[stage])
    with refused(monkeypatch, harms):
        assert run(pipeline, stage) == pipeline.made[stage]


MODEL = "model/model.safetensors"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_pretrained_model(dtype: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the precision it is stored in; a bit that no output shows is found, and its tensor named."""

    def nudge(found: dict[str, torch.Tensor]) -> None:
        found["model.norm.weight"] = torch.nextafter(
            found["model.norm.weight"], torch.full_like(found["model.norm.weight"], 9)
        )

    harms = {
        "bit": (tensors(MODEL, nudge), r"model: model\.norm\.weight does not reload equal \(1 of \d+ tensors differ\)"),
        "cut": (cut(MODEL), rf"{MODEL} \([\d,]+ bytes\) cannot be read"),
        "no config": (lambda f: (f / "model/config.json").unlink(), "model: the stored model does not load"),
        "rope": (
            words("model/config.json", lambda c: c["rope_parameters"].update(rope_theta=5.0)),
            "the stored model gives other outputs than the trained one",
        ),
        **text_harms("model"),
    }
    with refused(monkeypatch, harms):
        made = run(pipeline, "pretrain", save_dtype=dtype, name="again", max_steps=1)
    stored = load_file(pipeline.store.folder(made) / MODEL)
    assert {tensor.dtype for tensor in stored.values()} == {models.precision.DTYPES[dtype]}


def test_a_merged_model(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was measured, every file must still be the one that was measured."""
    harms = {
        "bit": (flip(MODEL), f"{MODEL} is not the file that was measured"),
        "config": (append("model/config.json", " "), r"model/config\.json is not the file that was measured"),
        "gone": (
            lambda f: (f / "model/generation_config.json").unlink(),
            r"model/generation_config\.json is not the file",
        ),
    }
    with refused(monkeypatch, harms):
        assert merge.run(merge.Config(parent="tiny/dpo", threads=1), pipeline.store).metrics["verdict"] == "equal"


def test_a_merged_model_harmed_before_it_is_measured(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit, which a KL would pass as equal, is found because the file is compared with what was written."""
    save_model, before = models.save.save_model, kept(pipeline.store)

    def harmed(model: Any, folder: Path, *settings: Any) -> None:
        save_model(model, folder, *settings)
        flip(Path(MODEL).name)(folder)

    with monkeypatch.context() as patch:
        patch.setattr(models.save, "save_model", harmed)
        with pytest.raises(
            AlignError, match=r"model: model\.norm\.weight does not reload equal .* Nothing was committed\."
        ):
            merge.run(merge.Config(parent="tiny/dpo", threads=1), pipeline.store)
    assert kept(pipeline.store) == before
    merge.run(merge.Config(parent="tiny/dpo", threads=1), pipeline.store)  # negative control
