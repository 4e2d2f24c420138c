"""New tokens through the stages: one id each, rows that train, the artifact as PEFT and plain transformers read it;
without the setting none of it."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import align
from align import dpo, generate, merge, ppo, pretrain, reward, sft
from align.exchange.transfer import import_adapter
from align.ground.errors import InputError, Stopped
from align.recipe import Adapter, Base
from align.rendering.render import load_renderer
from align.report.code import plain_code
from align.report.text import show_text
from align.store import Artifact, Store
from tests.conftest import ROOT, write_rows
from tests.stages.helpers import forget
from tests.stages.test_resume import interrupt

pytestmark = [  # PEFT's, about its own settings
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

NEW = ["<tool>", "</tool>"]
COMMON: dict[str, Any] = dict(
    max_steps=2, batch_size=8, precision="fp32", threads=1, learning_rate=0.01, warmup_ratio=0.0, logging_steps=1
)
EMBEDDED = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


HEAD = "base_model.model.lm_head.token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class World:
    """A base, rows that hold the new tokens, and a store in which `sft` is fine-tuned with them and `plain` without."""

    base: Path
    rows: int
    tied: bool
    data: dict[str, str]
    store: Store

    def run(self, stage: Any, **settings: Any) -> Artifact:
        made: Artifact = stage.run(stage.Config(**{**COMMON, **settings}), self.store)
        return made

    def fresh(self) -> Any:
        """The base as plain transformers loads it, enlarged as the shown code does."""
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        model.resize_token_embeddings(max(self.rows, self.first + 2), mean_resizing=False)
        return model

    @property
    def first(self) -> int:
        return len(AutoTokenizer.from_pretrained(self.base))

    def adapter(self, name: str, i: int = 0) -> Path:
        return self.store.folder(self.store.resolve(name)) / f"adapters/{i}"


@pytest.fixture(
    scope="module", params=["tied, no spare rows", pytest.param("untied, spare rows", marks=pytest.mark.slow)]
)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("tokens")
    base, tied = folder / "base", request.param.startswith("tied")
    shutil.copytree(ROOT / "data/tiny-base", base)
    config = AutoConfig.from_pretrained(base)
    if not tied:
        config.update(
            {"tie_word_embeddings": False, "num_hidden_layers": 2, "hidden_size": 40, "head_dim": 8, "vocab_size": 900}
        )
        config.intermediate_size = 64
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(base)
    sums = [(a, b) for a in range(6) for b in range(8)]
    answers = [
        {"prompt": f"What is {a} plus {b}?", "completion": f"<tool>{a}+{b}</tool> It is {a + b}."} for a, b in sums
    ]
    pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "<tool> no"} for r in answers]
    prompts = [{"prompt": r["prompt"]} for r in answers[:8]]
    data = {
        name: write_rows(folder / f"{name}.jsonl", rows)
        for name, rows in (("sft", answers), ("pairs", pairs), ("prompts", prompts))
    }
    found = World(base, config.vocab_size, tied, {k: str(v) for k, v in data.items()}, Store(folder / "store"))
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    for name, new in (("sft", {"new_tokens": NEW}), ("plain", {})):
        found.run(sft, base=str(base), data=found.data["sft"], name=name, **new)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    return found


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> Tensor:
    out: Tensor = model(torch.tensor([ids])).logits[0]
    return out


def shown(world: World, name: str) -> Any:
    """The model that the code which `align show` prints loads."""
    artifact = world.store.resolve(name)
    code = plain_code(artifact, str(world.store.folder(artifact)), lambda base: repr(str(world.base)))
    namespace: dict[str, Any] = {}
    exec("\n".join(code), namespace)
    return namespace["model"].eval()


def ids_of(world: World, name: str) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(world.store.folder(world.store.resolve(name)) / "tokenizer")
    ids: list[int] = tokenizer("1 <tool>2 + 3</tool> It", add_special_tokens=False)["input_ids"]
    return ids


def test_each_new_text_is_one_token_whose_row_trains(world: World) -> None:
    """In the artifact's tokenizer and adapter; without the setting the same text is several tokens, and no row is
    there."""
    tensors, plain = (load_file(world.adapter(name) / "adapter_model.safetensors") for name in ("sft", "plain"))
    new, ids = [world.first, world.first + 1], ids_of(world, "sft")
    assert [i for i in ids if i in new] == new and len(ids_of(world, "plain")) > len(ids)
    assert not any("trainable_tokens" in name for name in plain)
    assert len([name for name in tensors if "trainable_tokens" in name]) == (1 if world.tied else 2)
    embedding = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32).get_input_embeddings().weight
    pieces = AutoTokenizer.from_pretrained(world.base)(NEW, add_special_tokens=False)["input_ids"]
    start = torch.stack([embedding[piece].mean(0) for piece in pieces])
    moved = (tensors[EMBEDDED] - start).abs()
    assert 0.005 < moved.max() < 0.05 and (moved.amax(1) > 0.001).all()  # two steps of Adam at a rate of 0.01
    tokenizer = AutoTokenizer.from_pretrained(world.store.folder(world.store.resolve("sft")) / "tokenizer")
    assert tokenizer.decode(ids, skip_special_tokens=True).count("tool>") == 2  # an answer keeps them


def test_peft_and_transformers_compute_the_same(world: World) -> None:
    """The artifact in PEFT on a fresh base, by `align.load`, and merged in plain transformers."""
    ids = ids_of(world, "sft")
    wanted = logits(PeftModel.from_pretrained(world.fresh(), world.adapter("sft")).eval(), ids)
    torch.testing.assert_close(logits(shown(world, "sft"), ids), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(align.load("sft", world.store)[0], ids), wanted, atol=1e-5, rtol=0)
    merged = world.store.folder(merge.run(merge.Config(parent="sft", name="merged"), world.store)) / "model"
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    torch.testing.assert_close(logits(model, ids), wanted, atol=1e-5, rtol=0)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == world.tied
    assert model.config.vocab_size == len(model.model.embed_tokens.weight) == max(world.rows, world.first + 2)
    assert (
        AutoTokenizer.from_pretrained(merged)("1 <tool>2 + 3</tool> It", add_special_tokens=False)["input_ids"] == ids
    )
    refused(world, "'<tool>' cannot be added: the tokenizer has it already", parent="merged", new_tokens=["<tool>"])
    assert not torch.allclose(logits(world.fresh(), ids), wanted, atol=1e-2)  # negative control


@pytest.mark.slow
def test_later_stages_go_on_with_the_rows(world: World) -> None:
    """`continue` trains them on, `stack` freezes them below a fresh adapter without rows; rewards, PPO and generate
    have them too."""
    ids = ids_of(world, "sft")
    rows = lambda name, i=0: load_file(world.adapter(name, i) / "adapter_model.safetensors")  # noqa: E731
    world.run(dpo, parent="sft", data=world.data["pairs"], name="dpo")
    assert not torch.equal(rows("dpo")[EMBEDDED], rows("sft")[EMBEDDED])
    world.run(
        dpo, parent="sft", data=world.data["pairs"], name="stacked", parent_adapter="stack", adapter=Adapter(rank=4)
    )
    assert torch.equal(rows("stacked")[EMBEDDED], rows("sft")[EMBEDDED]) and EMBEDDED not in rows("stacked", 1)
    merged = world.store.folder(merge.run(merge.Config(parent="stacked", name="stacked-merged"), world.store)) / "model"
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    torch.testing.assert_close(
        logits(align.load("stacked", world.store)[0], ids), logits(plain, ids), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(logits(shown(world, "stacked"), ids), logits(plain, ids), atol=1e-5, rtol=0)
    world.run(reward, parent="sft", data=world.data["pairs"], name="reward", centre_samples=4, centre_max_new_tokens=4)
    # of an untied head they stay, as scores do not read it
    assert not torch.equal(rows("reward")[EMBEDDED], rows("sft")[EMBEDDED])
    assert world.tied or torch.equal(rows("reward")[HEAD], rows("sft")[HEAD])
    settings = dict(rollout_size=8, max_new_tokens=4, trust_reward=True, parent_adapter="continue")
    made = world.run(ppo, parent="sft", reward="reward", data=world.data["prompts"], name="ppo", **settings)
    assert EMBEDDED in rows("ppo") and made.metrics["sampler_gap/mean"] < 1e-5
    merge.run(merge.Config(parent="reward", name="reward-merged"), world.store)
    answers = generate.run(
        generate.Config(parent="ppo", data=world.data["prompts"], max_new_tokens=4, precision="fp32"), world.store
    )
    assert len(answers) == 8


def test_resumed_is_uninterrupted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    again = partial(
        world.run, sft, base=str(world.base), data=world.data["sft"], name="resumed", new_tokens=NEW, max_steps=4
    )
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Stopped):
            again()
    resumed = again()
    forget(world.store, resumed)
    assert again().digest == resumed.digest


def test_pretrained_with_new_tokens(world: World) -> None:
    """All weights train, in an enlarged model; or an adapter does."""
    common = dict(base=str(world.base), data=world.data["sft"], learn="answers", new_tokens=NEW)
    full = world.store.folder(world.run(pretrain, name="full", **{**common, "learning_rate": 1e-3})) / "model"
    assert AutoModelForCausalLM.from_pretrained(full).config.vocab_size == max(world.rows, world.first + 2)
    assert len(AutoTokenizer.from_pretrained(full)) == world.first + 2
    world.run(pretrain, name="lora", method="lora", **common)
    assert EMBEDDED in load_file(world.adapter("lora") / "adapter_model.safetensors")


def refused(world: World, match: str, **settings: Any) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("loaded a base")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("align.models.base.load_base", load)
        with pytest.raises(InputError, match=match):
            world.run(sft, data=world.data["sft"], name="bad", **settings)


def test_what_cannot_be_added_is_refused_before_a_base_is_loaded(world: World) -> None:
    base = str(world.base)
    refused(world, "'It' cannot be added: the tokenizer has it already, with id", base=base, new_tokens=["It"])
    refused(world, "'<tool>' cannot be added: it stands there twice", base=base, new_tokens=["<tool>", "<tool>"])
    refused(world, "' ' cannot be added: blanks begin or end it", base=base, new_tokens=[" "])
    refused(
        world,
        "no record to train on .* holds '<never>', whose row would learn nothing",
        base=base,
        new_tokens=["<tool>", "<never>"],
    )
    refused(
        world,
        "new_tokens has no effect: the parent's tokenizer and its tokens' rows",
        parent="sft",
        new_tokens=["<more>"],
    )
    with pytest.raises(ValueError, match="a model from scratch has one of its own"):
        pretrain.Config(data="texts.jsonl", new_tokens=["<tool>"])
    with pytest.raises(ValueError, match="Extra inputs"):
        dpo.Config.model_validate({"base": "b", "data": "d", "new_tokens": ["<tool>"]})


def test_tokens_of_a_template_end_turns(world: World, tmp_path: Path) -> None:
    """ChatML on a base that does not know it: its turns end at one token, which counts, and which contents may not
    hold."""
    turn = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    (tmp_path / "chatml.jinja").write_text(turn + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    renderer = load_renderer(world.base, str(tmp_path / "chatml.jinja"), 128, new_tokens=["<|im_start|>", "<|im_end|>"])
    rows = align.data.formats.read_conversations(Path(world.data["sft"]))
    (example, *_) = renderer.conversations(rows)
    (ids,), (counts,) = example.sequences, example.supervised
    assert world.first + 1 in renderer.stop_ids and ids.count(world.first) == 2
    assert ids[-1] == world.first + 1 and counts[-1]
    write_rows(tmp_path / "bad.jsonl", [{"prompt": "a <|im_end|> b", "completion": "c"}])
    with pytest.raises(InputError, match=r"holds the special token '<\|im_end\|>'"):
        renderer.conversations(align.data.formats.read_conversations(tmp_path / "bad.jsonl"))
    without = load_renderer(world.base, str(tmp_path / "chatml.jinja"), 128)  # negative control
    with pytest.raises(InputError, match="no end-of-turn token follows"):
        without.conversations(rows)


def saved(world: World, folder: Path, indices: Any, resize: bool = True, **save: Any) -> Path:
    """What PEFT saves of a random adapter with rows."""
    torch.manual_seed(0)
    model = world.fresh() if resize else AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
    model = get_peft_model(
        model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", trainable_token_indices=indices)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "trainable_tokens" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder, **save)
    return folder


def test_rows_from_peft_are_imported(world: World, tmp_path: Path) -> None:
    """As PEFT computes them; rows of the embedding alone where it is not tied; whole matrices, gaps and files that
    differ are refused."""
    new = [world.first, world.first + 1]

    def take(folder) -> Artifact:
        return import_adapter(folder, Base(model=str(world.base)), world.store, name="mine")

    for i, indices in enumerate([[5, *new], {"embed_tokens": [5, *new], "lm_head": [5, *new]}]):
        folder = saved(world, tmp_path / f"{i}", indices, save_embedding_layers=False)
        take(folder)
        ids = [3, 5, *new, 9]
        wanted = logits(PeftModel.from_pretrained(world.fresh(), folder).eval(), ids)
        merged = merge.run(merge.Config(parent="mine", name="mine-merged"), world.store)
        plain = AutoModelForCausalLM.from_pretrained(world.store.folder(merged) / "model", dtype=torch.float32)
        torch.testing.assert_close(logits(plain, ids), wanted, atol=1e-5, rtol=0)
    assert ("base.resize_token_embeddings(" in show_text(world.store, "mine")) == (max(new) >= world.rows)
    there = take(saved(world, tmp_path / "there", [5, 6], resize=False, save_embedding_layers=False))
    assert there.config["embedding_rows"] == "base" and "resize_token_embeddings" not in show_text(world.store, "mine")
    with pytest.raises(
        InputError, match=r"a whole matrix beside the rows of its tokens\. Save it again with save_pretrained"
    ):
        take(saved(world, tmp_path / "whole", new, save_embedding_layers=True))
    broken = saved(world, tmp_path / "broken", [5, 6], save_embedding_layers=False)
    settings = json.loads((broken / "adapter_config.json").read_text())
    for indices, match in (
        ([5, 6, 7], "have sizes 2 x .* but trainable_token_indices gives it 3"),
        ([5, 5], "different ids"),
        ([-1, 5], "different ids"),
        (None, "names no trainable_token_indices"),
        ([5, world.rows + 3], "leave out"),
    ):
        (broken / "adapter_config.json").write_text(json.dumps({**settings, "trainable_token_indices": indices}))
        with pytest.raises(InputError, match=match):
            take(broken)


def test_on_a_base_in_4_bits(world: World) -> None:
    """Embedding and head are not quantised, and so their rows train beside NF4 as anywhere."""
    made = world.run(
        sft, base={"model": str(world.base), "quantize": "nf4"}, data=world.data["sft"], name="nf4", new_tokens=NEW
    )
    assert EMBEDDED in load_file(world.adapter("nf4") / "adapter_model.safetensors")
    assert merge.run(merge.Config(parent=made.digest, name="nf4-merged"), world.store).metrics["kl"] < 1e-5
