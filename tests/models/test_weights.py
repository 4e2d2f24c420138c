"""A loaded base is what its files hold, as transformers itself reports it: nothing drawn, left over or of another
shape, and a decoder."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    Gemma3Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    LlavaConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    modeling_utils,
)

from align.ground.errors import InputError
from align.models.base import load_base
from align.models.save import save_model, stored_dtype
from align.rendering.render import Renderer, load_renderer
from align.rendering.tokenizer import train_tokenizer
from tests.models.models import SIZES

IDS = torch.tensor([[5, 9, 30, 44, 12, 7]])


def written(model: PreTrainedModel, folder: Path) -> Path:
    """A model's folder with a tokenizer, its weights drawn from a wide distribution."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    train_tokenizer(["a b c d e f g"] * 20, 80, 128).save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return written(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path / "base")


def change(folder: Path, how: Callable[[dict[str, Tensor]], Any]) -> None:
    held = load_file(folder / "model.safetensors")
    how(held)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def set_in(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder: Path, **kwargs: Any) -> PreTrainedModel:
    return load_base(folder, quantize=None, dtype=torch.float32, **kwargs)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


UP = "model.layers.1.mlp.up_proj.weight"
WRONG: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a tensor is missing": (
        lambda f: change(f, lambda held: held.pop(UP)),
        "missing_keys",
        rf"lack 1 tensor \({UP}\) of LlamaForCausalLM, which would be drawn at random",
    ),
    "the head is missing": (
        lambda f: change(f, lambda held: held.pop("lm_head.weight")),
        "missing_keys",
        r"lack 1 tensor \(lm_head\.weight\)",
    ),
    "layers are missing": (
        lambda f: set_in(f, num_hidden_layers=3),
        "missing_keys",
        r"lack 9 tensors \(model\.layers\.2\.",
    ),
    "layers are left over": (
        lambda f: set_in(f, num_hidden_layers=1),
        "unexpected_keys",
        r"hold 9 tensors \(model\.layers\.1\..* would be left",
    ),
    "a tower is left over": (
        lambda f: change(f, lambda held: held.update({"vision.patch.weight": torch.ones(3, 3)})),
        "unexpected_keys",
        r"hold 1 tensor \(vision\.patch\.weight\) that LlamaForCausalLM does not have",
    ),
    "a score head is left over": (
        lambda f: change(f, lambda held: held.update({"score.weight": torch.ones(1, 32)})),
        "unexpected_keys",
        r"score\.weight",
    ),
    "the vocabulary is another": (
        lambda f: set_in(f, vocab_size=50),
        "mismatched_keys",
        r"weight is \(97, 32\) in its weight files, and \(50, 32\) by its config\.json \(2 tensors differ\)",
    ),
    "the width is another": (
        lambda f: set_in(f, intermediate_size=64),
        "mismatched_keys",
        r"is \(32, 48\) in its weight files, and \(32, 64\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_are_not_the_model(base: Path, name: str):
    """Refused with the names that transformers reports; loaded by itself it draws or leaves out those tensors."""
    load(base)  # negative control
    spoil, kind, message = WRONG[name]
    spoil(base)
    _, info = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True, ignore_mismatched_sizes=True)
    assert info[kind]
    with pytest.raises(InputError, match=message):
        load(base)


def test_buffers_that_transformers_computes_may_be_stored(base: Path):
    """Older checkpoints hold each layer's rotary frequencies; transformers knows that they are none of its weights."""
    before = logits(AutoModelForCausalLM.from_pretrained(base))
    change(
        base,
        lambda held: held.update({f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}),
    )
    model = load(base)
    model.config._attn_implementation = "sdpa"
    assert torch.equal(logits(model), before)


def test_models_of_another_kind(tmp_path: Path):
    """Transformers takes most of them for language models: with a head at random, or reading backwards."""
    small = dict(vocab_size=97, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2)
    t5 = T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    bert = BertConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    others = {
        "t5": (
            T5ForConditionalGeneration(t5),
            "T5ForConditionalGeneration names no token that its decoder begins with",
        ),
        "bert": (BertLMHeadModel(bert), "BertLMHeadModel reads what comes after a token too, as encoders do"),
        "classifier": (
            LlamaForSequenceClassification(LlamaConfig(**SIZES)),
            "a LlamaForSequenceClassification, which has another head",
        ),
        "trunk": (LlamaModel(LlamaConfig(**SIZES)), r"lack 1 tensor \(lm_head\.weight\)"),
    }
    for name, (model, message) in others.items():
        folder = written(model, tmp_path / name)
        with pytest.raises(InputError, match=message):
            load(folder)
        if name == "classifier":  # by its tensors too
            set_in(folder, architectures=None)
            with pytest.raises(InputError, match=r"lack 1 tensor \(lm_head\.weight\)"):
                load(folder)
    for name in ("bert", "classifier"):
        assert AutoModelForCausalLM.from_pretrained(tmp_path / name)  # negative control
    bart = written(BartForConditionalGeneration(BartConfig(**small, **heads)), tmp_path / "bart")
    assert load(bart)  # negative control
    said = json.loads((bart / "config.json").read_text(encoding="utf-8"))
    del said["is_encoder_decoder"]  # its class says so too, but who reads no torch would not know
    (bart / "config.json").write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(InputError, match="a bart model is an encoder-decoder; add is_encoder_decoder: true"):
        load(bart)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(base: Path, value: float):
    change(base, lambda held: held[UP].__setitem__((0, 0), value))
    with pytest.raises(InputError, match="the model's outputs are not numbers; its weights hold NaN or infinity"):
        load(base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "nothing-known"},
            r"config\.json: transformers .* cannot read it \(ValueError: .*nothing-known",
        ),
        ({"hidden_size": -1}, r"config\.json: transformers .* cannot read it"),
        ({"num_attention_heads": 0}, r"config\.json: transformers .* cannot read it"),
        ({"dtype": "no dtype"}, r"config\.json: transformers .* cannot read it"),
        ({"hidden_act": "nothing-known"}, r"base: transformers .* cannot read it \(KeyError"),
        ({"model_type": "vit", "architectures": None}, "a vit model is not a language model that writes text"),
    ],
)
def test_a_config_that_transformers_does_not_take(base: Path, changes: dict[str, Any], message: str):
    set_in(base, **changes)
    with pytest.raises(InputError, match=message):
        load(base)


def test_a_head_unlike_the_embeddings_that_config_ties(base: Path, tmp_path: Path):
    """Loaded as transformers loads it, and written so that others do not tie it."""
    set_in(base, tie_word_embeddings=True)
    truth = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert truth.lm_head.weight is not truth.model.embed_tokens.weight and truth.config.tie_word_embeddings
    model = load(base)
    save_model(model, tmp_path / "saved", "fp32", {"stop_ids": [2], "pad_token_id": 0})
    assert json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), logits(truth))
    change(base, lambda held: held.pop("lm_head.weight"))  # negative control: really tied
    assert load(base).config.tie_word_embeddings


# ---- multimodal ------------------------------------------------------------------------------------------------------

VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)
TEXT = SIZES | {"head_dim": 8}
MULTIMODAL = {
    "gemma3": Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, image_token_index=90),
    "llava": LlavaConfig(
        text_config=TEXT | {"model_type": "llama"},
        vision_config=VISION | {"model_type": "clip_vision_model"},
        image_token_index=90,
    ),
}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_multimodal_checkpoint_is_loaded_whole(tmp_path: Path, name: str):
    """Every tensor of it, its vision part too; text gives what transformers' own class gives, and all of it is written
    again."""
    folder = written(AutoModelForImageTextToText.from_config(MULTIMODAL[name]), tmp_path / name)
    model = load(folder)
    truth = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert type(model) is type(truth)
    save_model(model, tmp_path / "saved", "fp32", {"stop_ids": [2], "pad_token_id": 0})
    model.config._attn_implementation = truth.config._attn_implementation
    assert torch.equal(logits(model), logits(truth))
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "saved/model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert any("vision" in key for key in before)
    change(folder, lambda held: held.pop(next(key for key in held if "vision" in key)))  # negative control
    with pytest.raises(InputError, match=r"lack 1 tensor \(.*vision"):
        load(folder)


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def test_a_tokenizer_beyond_the_embedding(base: Path):
    """Ids without a row are refused where they can occur; an added token that nothing names may have one, as Gemma's
    for images."""

    def renderer(**added: str) -> tuple[Renderer, int]:
        tokenizer = train_tokenizer(["a b c d e f g"] * 20, 80, 128)
        rows = len(tokenizer)
        tokenizer.add_special_tokens({"pad_token": added["pad"]} if "pad" in added else {})
        tokenizer.add_tokens([added["more"]] if "more" in added else [])
        tokenizer.save_pretrained(base)
        return load_renderer(base, "plain", 64), rows

    fits, rows = renderer()
    fits.check_vocabulary(rows, base)
    renderer(more="<image>")[0].check_vocabulary(rows, base)
    with pytest.raises(
        InputError, match=rf"gives '<new pad>' the id {rows}, and the model's embedding has {rows} rows"
    ):
        renderer(pad="<new pad>")[0].check_vocabulary(rows, base)
    named = renderer(more="<turn>")[0]
    named.template = replace(named.template, source=f"{named.template.source}<turn>")
    with pytest.raises(InputError, match="gives '<turn>' the id"):
        named.check_vocabulary(rows, base)
    with pytest.raises(InputError, match=r"the model's embedding has 50 rows \(\d+ tokens have none\)"):
        fits.check_vocabulary(50, base)


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_folder_says_the_precision_that_it_holds(tmp_path: Path, name: str):
    """transformers' own choice (`dtype` not given) is then the stored one, in every part. Negative control: fp32."""
    made = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        "gemma3": lambda: AutoModelForImageTextToText.from_config(MULTIMODAL["gemma3"]),
    }[name]()
    model = load(written(made, tmp_path / "base"))
    for dtype, stored in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        save_model(model, tmp_path / dtype, dtype, {"stop_ids": [2], "pad_token_id": 0})
        held = {tensor.dtype for tensor in load_file(tmp_path / dtype / "model.safetensors").values()}
        again = type(model).from_pretrained(tmp_path / dtype)
        config = json.loads((tmp_path / dtype / "config.json").read_text())
        parts = [config, *(part for part in config.values() if isinstance(part, dict) and "model_type" in part)]
        assert held == {p.dtype for p in again.parameters()} == {stored}
        assert {part["dtype"] for part in parts} == {str(stored).removeprefix("torch.")}
        assert len(parts) == {"llama": 1, "gemma3": 3}[name] and stored_dtype(tmp_path / dtype) == dtype


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux shows what is mapped")
def test_files_are_mapped_only_where_their_numbers_are_the_model(base: Path) -> None:
    """In the precision of the file its pages are the weights. In another, where they would lie beside the model, it is
    read, and gives what transformers' own loading gives."""

    def mapped() -> bool:
        return str(base / "model.safetensors") in Path("/proc/self/maps").read_text(encoding="utf-8")

    seen: list[bool] = []
    inner = modeling_utils.PreTrainedModel.tie_weights

    def noted(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:  # called while the files are open
        seen.append(mapped())
        return inner(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "tie_weights", noted)
        model = load_base(base, quantize=None, dtype=torch.float32)
        assert mapped() and seen[-1]
        del model
        gc.collect()
        seen.clear()
        narrow = load_base(base, quantize=None, dtype=torch.bfloat16)
        assert not any(seen) and not mapped()
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    for (name, got), want in zip(narrow.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(got, want), name
