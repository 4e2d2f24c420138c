"""What a model's folder holds, read and checked without torch: its configuration, the headers of its weight files, its
tokenizer's files.

Everything that transformers reads from such a folder is in `MODEL_FILES`, or is refused here in one sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align.ground.errors import InputError

MODEL_FILES = [
    "*.json",
    "*.safetensors",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "merges.txt",
    "vocab.txt",
    "dict.txt",
    "bpe.codes",
    "prophetnet.tokenizer",
    "*.model",
    "*.spm",
    "*.tiktoken",
]
"""What a base is: weights, config, generation settings, templates, and each file that a tokenizer of transformers is
built from."""
VOCABULARIES = ["tokenizer.json", "tekken.json", "vocab.txt", "merges.txt", "bpe.codes", "prophetnet.tokenizer"]
VOCABULARIES += ["*.model", "*.spm", "*.tiktoken"]
"""Files one of which a tokenizer cannot do without; a vocab.json says nothing without its merges."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What a multimodal model's images are read with: Align reads none of it, and a merged model brings it along."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG = "config.json"
FLOATS = {"F64", "F32", "F16", "BF16"}
"""What safetensors calls the types of plain weights."""
OTHER_WEIGHTS = {
    "a pickle, which can hold code": (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".distcp"),
    "GGUF, a format for inference": (".gguf",),
    "a format of TensorFlow, Flax or another runtime": (".h5", ".msgpack", ".ot", ".onnx", ".npz"),
}


def check_folder(folder: Path, *, classifier: bool = False) -> dict[str, Any]:
    """The configuration of a model folder that transformers can load as it is, with nothing drawn, left out or read
    from elsewhere; a language model, or a merged reward (`classifier`), which only leaves the store.

    Raises: InputError with the reason and the remedy.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} has no {CONFIG}; expected a model folder in the Hugging Face layout.{_instead(folder)}"
        )
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} holds both a model and an adapter (adapter_config.json), which transformers would put into the "
            "model. For the model alone, move the adapter's files away; to start from the adapter, move them to a "
            "folder of their own and `align import` that."
        )
    config = read_json(folder / CONFIG)
    check_config({**config, "architectures": None} if classifier else config, folder)
    for name in ("generation_config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            read_json(folder / name)
    check_weights(folder, config)
    if not any(path.is_file() for pattern in VOCABULARIES for path in folder.glob(pattern)):
        found = "a vocab.json without its merges.txt" if (folder / "vocab.json").is_file() else "no vocabulary"
        raise InputError(
            f"{folder} has {found}, so no tokenizer. Copy the tokenizer's files of its model there (tokenizer.json)."
        )
    return config


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises: InputError naming the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}. Copy it again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}; expected a JSON object.")
    return found


# ---- the configuration -----------------------------------------------------------------------------------------------


def check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse what is no language model, quantised in a way that Align does not train on, or steered to code elsewhere.

    Raises: InputError.
    """
    path = folder / CONFIG
    if not isinstance(config.get("model_type"), str):
        raise InputError(
            f"{path} has no model_type that is a word (found {config.get('model_type')!r}); expected one such as "
            f'"llama".'
        )
    if kind := other_kind(config):
        raise InputError(f"{path} describes {kind}; Align trains language models. Name a checkpoint of that kind.")
    for key, value in _entries(config):
        if re.fullmatch(r"_?(attn|experts)_implementation(_internal)?", key) and "/" in str(value):
            raise InputError(
                f"{path}: {key} is {value!r}, which is code of the hub. Align runs no code of a model: remove that "
                f"line."
            )
    if isinstance(config.get("max_position_embeddings"), int) and config["max_position_embeddings"] < 1:
        raise InputError(
            f"{path}: max_position_embeddings is {config['max_position_embeddings']}; a model has at least one "
            f"position."
        )
    quantisation(config, folder)


def other_kind(config: Mapping[str, Any]) -> str | None:
    """What a config.json describes where that is no language model (with or without a vision part), in words; else
    None."""
    architectures = config.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if re.search(r"For(?!CausalLM|ConditionalGeneration)[A-Z]\w*$", name):
        return f"a {name}, which has another head than a language model"
    return None


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a model whose encoder reads the prompt and whose decoder writes the answer, such
    as T5."""
    return config.get("is_encoder_decoder") is True


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of the part that writes text."""
    return dict(next((part for key in ("text_config", "decoder") if isinstance(part := config.get(key), dict)), config))


def decoder_start(config: Mapping[str, Any]) -> int | None:
    """The token that a decoder begins with, by an encoder-decoder's config.json; it may leave that to its generation
    settings."""
    start = config.get("decoder_start_token_id")
    return text_part(config).get("bos_token_id") if start is None else start


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a language model with a part that reads images."""
    return "vision_config" in config or "vq_config" in config


def quantisation(config: Mapping[str, Any], folder: Path) -> str | None:
    """How a checkpoint is quantised already: None, or bitsandbytes' "nf4", "fp4" or "int8".

    Raises: InputError for any other method.
    """
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    found = next(
        (c[key] for c in (config, inner) for key in ("quantization_config", "compression_config") if c.get(key)), None
    )
    if found is None:
        return None
    if isinstance(found, dict) and found.get("quant_method", "bitsandbytes") == "bitsandbytes":
        if found.get("load_in_8bit"):
            return "int8"
        if found.get("load_in_4bit") and found.get("bnb_4bit_quant_type", "fp4") in ("nf4", "fp4"):
            return str(found.get("bnb_4bit_quant_type", "fp4"))
    method = found.get("quant_method") if isinstance(found, dict) else found
    raise InputError(
        f"{folder / CONFIG}: the model is quantised by {method!r}, which Align does not train on. Name the unquantised "
        "model that it was made from; with quantize: nf4 it takes as little memory."
    )


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON object and what stands there, however deep."""
    waiting = [value]
    while waiting:
        for key, inner in waiting.pop().items():
            yield key, inner
            waiting += [v for v in (inner if isinstance(inner, list) else [inner]) if isinstance(v, dict)]


# ---- weight files ----------------------------------------------------------------------------------------------------


def check_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """All weights lie in this folder, in whole safetensors files, and there are enough for the layers that config.json
    names.

    Raises: InputError naming the file.
    """
    files = weight_files(folder, config)
    held = {path.name: tensors(path) for path in files}
    count = sum(map(len, held.values()))
    layers = text_part(config).get("num_hidden_layers")
    if not count or (isinstance(layers, int) and layers > count):
        there = "no tensor" if not count else f"{count:,} tensors"
        raise InputError(
            f"{folder}: its weight files hold {there}, for the {layers} layers of {CONFIG}. Its files do not belong "
            f"together."
        )
    places = _index(folder, config)
    for name, file in places.items():
        if name not in held[file]:
            raise InputError(f"{folder}: {INDEX} says that {name} is in {file}, and it is not. Copy the folder again.")
    for file, name in ((file, name) for file, found in held.items() for name in found if places):
        if places.get(name) != file:  # transformers takes whatever a file holds, of two the one that it reads last
            said = f"places in {places[name]}" if name in places else "does not name"
            raise InputError(
                f"{folder}: {file} holds {name}, which {INDEX} {said}. Copy the folder again, or save the model again."
            )
    _check_types(
        folder,
        {name: entry[0] for found in held.values() for name, entry in found.items()},
        quantisation(config, folder),
    )


def _check_types(folder: Path, types: Mapping[str, str], own: str | None) -> None:
    """Tensors, by their names and types, are packed as the checkpoint says it is quantised; where it says nothing they
    are floats.

    Raises: InputError naming one.
    """
    mark = ".SCB" if own == "int8" else f".quant_state.bitsandbytes__{own}"
    if own and not any(name.endswith(mark) for name in types):
        raise InputError(
            f"{folder}: {CONFIG} says that the model is quantised in {own}, and its weight files hold nothing of the "
            f"kind."
        )
    odd = [name for name, dtype in types.items() if name.endswith("weight") and dtype not in FLOATS]
    if odd and not own:
        raise InputError(
            f"{folder}: its weight files hold {odd[0]} as {types[odd[0]]}, and {CONFIG} says nothing of quantisation. "
            "Name the unquantised model that it was made from."
        )


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The files that transformers reads weights from. Raises: InputError where some are missing, or are no files of
    this folder."""
    name = _named(folder, config)
    names = sorted(set(_index(folder, config).values())) if name.endswith(".index.json") else [name]
    if missing := [name for name in names if not (folder / name).is_file()]:
        if len(names) == 1 and names[0] == WEIGHTS:
            raise InputError(f"{folder} has no {WEIGHTS} and no {INDEX}, so no weights.{_instead(folder)}")
        raise InputError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files: {', '.join(missing[:3])}. Fetch or copy "
            f"them again."
        )
    if any(re.fullmatch(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors", path.name) for path in folder.iterdir()):
        raise InputError(
            f"{folder} holds a distributed checkpoint (shard-….safetensors). Save it whole with transformers' "
            f"save_pretrained."
        )
    return [folder / name for name in names]


def _named(folder: Path, config: Mapping[str, Any]) -> str:
    """The file that weights are read from, or that lists those."""
    named = config.get("transformers_weights")
    if named is None:
        return INDEX if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file() else WEIGHTS
    if not (
        isinstance(named, str) and _is_plain(named) and named.endswith((".safetensors", ".safetensors.index.json"))
    ):
        raise InputError(
            f"{folder / CONFIG}: transformers_weights is {named!r}; expected a safetensors file of this folder."
        )
    return named


def _index(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Tensors and the files that hold them, where an index lists them. Raises: InputError."""
    if not (name := _named(folder, config)).endswith(".index.json"):
        return {}
    found = read_json(folder / name).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise InputError(
            f"{folder / name} has no weight_map that names a file for each tensor. Fetch or copy it again."
        )
    if outside := sorted({file for file in found.values() if not (_is_plain(file) and file.endswith(".safetensors"))}):
        raise InputError(
            f"{folder / name} names {outside[0]!r}; expected names of safetensors files in the same folder."
        )
    return found


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor in a safetensors file, from its header.

    Raises: InputError for a file that is cut short or is something else.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        header = file.read(length) if 8 + length <= size else b""
    if start == b"version ":
        raise InputError(f"{path} is a pointer of Git LFS, not the file itself. Run `git lfs pull` there.")
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        found = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(
            f"{path} ({size:,} bytes) is no whole safetensors file; it was cut short or is another format."
        ) from error
    if end != size:
        raise InputError(
            f"{path} has {size:,} bytes, where its header says {end:,}: it was cut short. Fetch or copy it again."
        )
    return found


def _instead(folder: Path) -> str:
    """What a folder without a model in our layout holds, and the remedy, as a sentence; "" where nothing is known."""
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return " It is empty."
    if "adapter_config.json" in names:
        return " It holds an adapter: `align import` it on its base."
    for what, endings in OTHER_WEIGHTS.items():
        if found := [name for name in names if name.endswith(endings) and name != "training_args.bin"]:
            remedy = (
                "Load it with transformers where you trust it and save it again: save_pretrained writes safetensors."
            )
            return f" It holds {found[0]}, {what}. {remedy}"
    if WEIGHTS in names or INDEX in names:
        return f" It holds {WEIGHTS if WEIGHTS in names else INDEX}: copy the other files of that model too."
    if found := [name for name in names if name.endswith(".safetensors")]:
        return (
            f" It holds {found[0]}: rename it if that is the model, or fetch the model in the layout of transformers."
        )
    return ""
