"""What a base's folder may be: everything that is read is in its digest, and what transformers would read otherwise
than it says, draw, leave out or run is refused in one sentence, before torch is loaded."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from align import models, sft
from align.folders.model import MODEL_FILES
from align.ground.errors import AlignError, InputError
from align.inputs.bases import BaseModel, find_base, locate_base
from align.recipe import Base
from align.store import Store, digest_folder
from tests.conftest import ROOT, write_rows

TINY = ROOT / "data/tiny-base"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "base"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def found(folder: Path, store: Store, **wanted: Any) -> BaseModel:
    return find_base(Base(model=str(folder), **wanted), store)


def config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        path = folder / "model.safetensors"
        held = load_file(path)
        change(held)
        save_file(held, path, metadata={"format": "pt"})

    return changed


def shards(folder: Path, **places: str) -> None:
    """The weights in two files, with an index; `places` are files that some tensors are said to be in."""
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(held)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: held[name] for name in part}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, part in parts.items() for name in part} | places
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


# ---- the digest ------------------------------------------------------------------------------------------------------

READ = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "merges.txt",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "qwen.tiktoken",
    "added_tokens.json",
    "tekken.json",
    "special_tokens_map.json",
    "chat_template.json",
    "additional_chat_templates/tools.jinja",
    "model-00001-of-00002.safetensors",
]


@pytest.mark.parametrize("file", READ)
def test_every_file_that_is_read_is_in_the_digest(base: Path, store: Store, file: str):
    path = base / file
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_bytes(b"{}")
    before = store.digest_folder(base, MODEL_FILES)
    path.write_bytes(path.read_bytes() + b" ")
    assert store.digest_folder(base, MODEL_FILES) != before


def test_other_files_are_not_in_the_digest(base: Path, store: Store):
    """Negative control; and a base without the files that were left out in earlier versions keeps the digest that it
    had."""
    before = store.digest_folder(base, MODEL_FILES)
    for file in ("README.md", "pytorch_model.bin", "LICENSE", "image.png"):
        (base / file).write_bytes(b"x")
    assert (
        store.digest_folder(base, MODEL_FILES)
        == before
        == digest_folder(base, ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"])
    )


def test_every_vocabulary_of_transformers_is_covered():
    """Against the names that its tokenizers look for."""
    names = set()
    for path in (Path(transformers.__file__).parent / "models").glob("*/tokenization*.py"):
        if listed := re.search(r"VOCAB_FILES_NAMES = \{(.*?)\}", path.read_text(encoding="utf-8"), re.S):
            names |= set(re.findall(r':\s*"([^"]+)"', listed[1]))
    assert {"merges.txt", "vocab.txt", "spiece.model", "tokenizer.json"} <= names and len(names) > 15
    assert not [name for name in sorted(names) if not any(fnmatch.fnmatch(name, pattern) for pattern in MODEL_FILES)]


def test_a_base_that_changes_while_it_is_read(
    base: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What was hashed is what was read, or nothing is trained on it."""
    data = write_rows(tmp_path / "sft.jsonl", [{"prompt": "What is 3 plus 4?", "completion": "It is 7."}])
    wanted = sft.Config(
        base={"model": str(base)}, data=str(data), eval_fraction=0, threads=1, max_steps=1, batch_size=1
    )  # type: ignore[arg-type]
    load_base = models.base.load_base

    def meanwhile(path: Path, **kwargs: Any) -> Any:
        tensors(lambda held: held["model.norm.weight"].mul_(2))(base)
        return load_base(path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(models.base, "load_base", meanwhile)
        with pytest.raises(AlignError, match=r"base/model\.safetensors changed while this run was reading the base"):
            sft.run(wanted, store)
    assert sft.run(wanted, store).base == found(base, store).manifest()  # negative control


# ---- what is refused -------------------------------------------------------------------------------------------------

UP = "model.layers.1.mlp.up_proj.weight"


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


def emptied(*keep: str, **files: bytes) -> Callable[[Path], None]:
    """Only `keep` of the folder, and `files` beside it."""

    def change(folder: Path) -> None:
        for path in folder.iterdir():
            if path.name not in keep:
                path.unlink()
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_bytes(content)

    return change


def index_that(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        shards(folder)
        path = folder / "model.safetensors.index.json"
        held = json.loads(path.read_text())
        change(held)
        path.write_text(json.dumps(held))

    return changed


def outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    names = load_file(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "../outside.safetensors")})
    )


def both(folder: Path) -> None:
    """A tensor in the other file too, with other values."""
    shards(folder)
    files = sorted(folder.glob("model-*.safetensors"))
    one, other = map(load_file, files)
    there, path = (one, files[0]) if UP in other else (other, files[1])
    there[UP] = torch.randn_like((one | other)[UP])
    save_file(there, path, metadata={"format": "pt"})


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


GGUF = {"model__gguf": b"GGUF"}
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (emptied(), "has no config.json; expected a model folder in the Hugging Face layout. It is empty."),
    "GGUF alone": (emptied(**GGUF), "has no config.json.* It holds model.gguf, GGUF, a format for inference"),
    "GGUF with config": (emptied("config.json", "tokenizer.json", **GGUF), "so no weights. It holds model.gguf"),
    "an adapter alone": (emptied(adapter_config__json=b"{}"), "has no config.json.* `align import` it on its base"),
    "an adapter beside": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "holds both a model and an adapter .*`align import` that",
    ),
    "a tokenizer alone": (emptied("tokenizer.json", "tokenizer_config.json"), "has no config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no vocabulary, so no tokenizer"),
    "no merges": (rename("tokenizer.json", "vocab.json"), "has a vocab.json without its merges.txt"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{,"), r"config\.json cannot be read as JSON"),
    "config deep": (lambda f: (f / "config.json").write_text("[" * 100_000), r"config\.json cannot be read as JSON"),
    "config a list": (
        lambda f: (f / "config.json").write_text("[]"),
        r"config\.json holds a list; expected a JSON object",
    ),
    "no model_type": (lambda f: (f / "config.json").write_text("{}"), "has no model_type that is a word"),
    "generation config": (
        lambda f: (f / "generation_config.json").write_text("no"),
        r"generation_config\.json cannot be read as JSON",
    ),
    "no positions": (config(max_position_embeddings=0), "max_position_embeddings is 0"),
    "pickle": (
        rename("model.safetensors", "pytorch_model.bin"),
        r"pytorch_model\.bin, a pickle, which can hold code.*save_pretrained writes",
    ),
    "pickle in shards": (
        rename("model.safetensors", "pytorch_model-00001-of-00002.bin"),
        "a pickle, which can hold code",
    ),
    "pt": (rename("model.safetensors", "model.pt"), "a pickle, which can hold code"),
    "pth": (rename("model.safetensors", "consolidated.00.pth"), "a pickle, which can hold code"),
    "TensorFlow": (rename("model.safetensors", "tf_model.h5"), "a format of TensorFlow"),
    "Flax": (rename("model.safetensors", "flax_model.msgpack"), "a format of TensorFlow, Flax"),
    "variant": (rename("model.safetensors", "model.fp16.safetensors"), r"It holds model\.fp16\.safetensors: rename it"),
    "cut short": (cut("model.safetensors", 100_000), "has 100,000 bytes, where its header says 3,114,248"),
    "cut in its header": (cut("model.safetensors", 100), r"\(100 bytes\) is no whole safetensors file"),
    "longer": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"x"),
        "where its header says",
    ),
    "LFS": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
    "no tensors": (tensors(lambda held: held.clear()), "hold no tensor"),
    "layers": (config(num_hidden_layers=10**7), "hold 39 tensors, for the 10000000 layers"),
    "index outside": (
        outside,
        r"names '\.\./outside\.safetensors'; expected names of safetensors files in the same folder",
    ),
    "index absolute": (
        index_that(lambda i: i["weight_map"].update({UP: "/etc/x.safetensors"})),
        "names '/etc/x.safetensors'",
    ),
    "index pickle": (index_that(lambda i: i["weight_map"].update({UP: "x.bin"})), "names 'x.bin'"),
    "index empty": (index_that(lambda i: i.clear()), "has no weight_map"),
    "index of lists": (
        index_that(lambda i: i["weight_map"].update({UP: ["a"]})),
        "has no weight_map that names a file for each tensor",
    ),
    "shard missing": (
        lambda f: (shards(f), (f / "model-00002-of-00002.safetensors").unlink()),
        r"lacks 1 of 2 weight files: model-00002-of-00002\.safetensors",
    ),
    "tensor elsewhere": (
        index_that(
            lambda i: i["weight_map"].update(
                {UP: next(v for v in i["weight_map"].values() if v != i["weight_map"][UP])}
            )
        ),
        f"says that {UP} is in .* and it is not",
    ),
    "tensor in two files": (
        both,
        f"model-0000.-of-00002.safetensors holds {UP}, which .* places in model-0000.-of-00002",
    ),
    "tensor that is not listed": (index_that(lambda i: i["weight_map"].pop(UP)), f"holds {UP}, which .* does not name"),
    "weights named": (config(transformers_weights="../x.safetensors"), "transformers_weights is '../x.safetensors'"),
    "distributed": (lambda f: (f / "shard-00001-model-00001-of-00001.safetensors").touch(), "a distributed checkpoint"),
    "attention of the hub": (
        config(_attn_implementation="kernels-community/evil"),
        "_attn_implementation is 'kernels-community/evil'",
    ),
    "nested attention": (
        config(text_config={"attn_implementation": "a/b:c"}),
        "attn_implementation is 'a/b:c', which is code of the hub",
    ),
    "attention by parts": (config(attn_implementation={"": "sdpa", "text_config": "a/b"}), "which is code of the hub"),
    "experts of the hub": (config(experts_implementation="a/b"), "experts_implementation is 'a/b'"),
    "classifier": (
        config(architectures=["LlamaForSequenceClassification"]),
        "a LlamaForSequenceClassification, which has another head",
    ),
    "masked": (config(architectures=["BertForMaskedLM"]), "a BertForMaskedLM, which has another head"),
    "vision": (config(architectures=["ViTForImageClassification"]), "ViTForImageClassification"),
    "speech": (config(architectures=["Wav2Vec2ForCTC"]), "Wav2Vec2ForCTC"),
    "GPTQ": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised by 'gptq'.* Name the unquantised model",
    ),
    "AWQ": (config(quantization_config={"quant_method": "awq"}), "quantised by 'awq'"),
    "fp8": (config(quantization_config={"quant_method": "fp8"}), "quantised by 'fp8'"),
    "nested quantisation": (
        config(text_config={"quantization_config": {"quant_method": "mxfp4"}}),
        "quantised by 'mxfp4'",
    ),
    "compressed": (
        config(compression_config={"quant_method": "compressed-tensors"}),
        "quantised by 'compressed-tensors'",
    ),
    "said to be packed": (
        config(quantization_config={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        "hold nothing of the kind",
    ),
    "integers": (tensors(lambda held: held.update({UP: held[UP].to(torch.int8)})), f"hold {UP} as I8"),
    "fp8 weights": (tensors(lambda held: held.update({UP: held[UP].to(torch.float8_e4m3fn)})), f"hold {UP} as F8_E4M3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_cannot_be_trained_on(base: Path, store: Store, name: str):
    """One sentence that names the folder; nothing is hashed or loaded."""
    change, message = REFUSED[name]
    change(base)
    with pytest.raises(InputError, match=message) as error:
        found(base, store)
    assert str(base) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match=message):
        models.base.load_base(base, quantize=None, dtype=torch.float32)


def test_a_folder_has_no_revisions(base: Path, store: Store):
    with pytest.raises(InputError, match=r"revision is 'main', but .* is a folder here"):
        found(base, store, revision="main")
    assert found(base, store).revision is None  # negative control


def linked(folder: Path) -> None:
    """As the hub's cache has it: symlinks into a folder of blobs."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(blobs / str(i))


TAKEN: dict[str, Callable[[Path], object]] = {
    "as it is": lambda f: None,
    "in shards": shards,
    "links": linked,
    "links to shards": lambda f: (shards(f), linked(f)),
    "a pickle beside": lambda f: (f / "pytorch_model.bin").write_bytes(b"x"),
    "training_args.bin": lambda f: (f / "training_args.bin").write_bytes(b"x"),
    "no generation config": lambda f: (f / "generation_config.json").unlink(),
    "another attention": config(_attn_implementation="eager", attn_implementation="flash_attention_2"),
    "no dtype": lambda f: config(dtype=None)(f),
    "architecture unsaid": config(architectures=None),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_folder_that_can(base: Path, store: Store, name: str):
    """Negative control; each gives the weights of the plain folder, and transformers' own choice of attention."""
    TAKEN[name](base)
    assert found(base, store).path == base
    model = models.base.load_base(base, quantize=None, dtype=torch.float32)
    truth = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in truth.state_dict().items())
    assert model.native_attention == truth.config._attn_implementation == "sdpa"


def test_a_cache_of_the_hub_that_holds_a_part(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch):
    """What another program fetched of a model is completed; without a network it is named."""
    place = tmp_path / "hub/models--a--b"
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(TINY / "config.json", snapshot)
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    asked: list[bool] = []

    def download(model: str, *, local_files_only: bool = False, **kwargs: Any) -> str:
        asked.append(local_files_only)
        if not local_files_only:
            shutil.copytree(TINY, snapshot, dirs_exist_ok=True)
        return str(snapshot)

    def offline(model: str, *, local_files_only: bool = False, **kwargs: Any) -> str:
        if not local_files_only:
            raise OSError("no network")
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(InputError, match=r"has no model\.safetensors and no model\.safetensors\.index\.json"):
        find_base(Base(model="a/b"), store)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_base(Base(model="a/b"), store).digest == found(TINY, store).digest and asked == [True, False]
    assert find_base(Base(model="a/b"), store).revision == "0" * 40 and asked[2:] == [True]


def test_an_adapter_finds_its_base_again(base: Path, store: Store):
    """By the digest over all files; a byte of a file that earlier versions did not look at is a change."""
    (base / "merges.txt").write_text("#version: 0.2\n")
    noted = found(base, store)
    store.note_place(noted.digest, base)
    assert locate_base(noted.manifest(), store).digest == noted.digest
    (base / "merges.txt").write_text("#version: 0.3\n")
    with pytest.raises(InputError, match="has changed"):
        locate_base(noted.manifest(), store)


def test_the_vocabulary_of_a_family_that_leaves_it_out(tmp_path: Path) -> None:
    """As the config.json of Gemma 3's larger models does: it is the default of transformers' class."""
    from align.inputs.bases import vocabulary

    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})
    )
    assert vocabulary(tmp_path) == transformers.Gemma3TextConfig().vocab_size
    assert vocabulary(TINY) == 887


def test_a_file_is_no_base(tmp_path: Path, store: Store) -> None:
    """It is there, so that it is not missing, nor its own correction; the control is one that is missing."""
    (tmp_path / "judge.py").touch()
    for name, said in (("judge.py", "is a file. Expected a model's folder"), ("nothing", "there is no folder")):
        with pytest.raises(InputError) as error:
            find_base(Base(model=str(tmp_path / name)), store)
        assert said in str(error.value) and "Did you mean" not in str(error.value)
