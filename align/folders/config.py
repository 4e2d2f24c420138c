"""A model's config.json: what it says of the model, and whether Align trains on such a one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from align.ground.errors import InputError
from align.ground.json import Json, in_words

CONFIG = "config.json"


def read_json(path: Path) -> Json:
    """The object in a JSON file. Raises: InputError naming the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {in_words(error)}. Copy it again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}; expected a JSON object.")
    return found


def check_config(config: Mapping[str, object], folder: Path) -> None:
    """Refuse what is no language model, quantised in a way that Align does not train on, or steered to code elsewhere.

    Raises: InputError.
    """
    path = folder / CONFIG
    if not isinstance(config.get("model_type"), str):
        raise InputError(
            f"{path} has no model_type that is a word (found {config.get('model_type')!r}); "
            'expected one such as "llama".'
        )
    if kind := other_kind(config):
        raise InputError(f"{path} describes {kind}; Align trains language models. Name a checkpoint of that kind.")
    for key, value in _entries(config):
        if re.fullmatch(r"_?(attn|experts)_implementation(_internal)?", key) and "/" in str(value):
            raise InputError(
                f"{path}: {key} is {value!r}, which is code of the hub. "
                "Align runs no code of a model: remove that line."
            )
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and positions < 1:
        raise InputError(f"{path}: max_position_embeddings is {positions}; a model has at least one position.")
    quantisation(config, folder)


def other_kind(config: Mapping[str, object]) -> str | None:
    """What a config.json describes where that is no language model (with or without a vision part), in words; else
    None."""
    architectures = config.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if re.search(r"For(?!CausalLM|ConditionalGeneration)[A-Z]\w*$", name):
        return f"a {name}, which has another head than a language model"
    return None


def is_encoder_decoder(config: Mapping[str, object]) -> bool:
    """Whether a config.json describes a model whose encoder reads the prompt and whose decoder writes the answer, such
    as T5."""
    return config.get("is_encoder_decoder") is True


def text_part(config: Mapping[str, object]) -> Json:
    """What a config.json says of the part that writes text."""
    parts = (config.get(key) for key in ("text_config", "decoder"))
    return dict(next((part for part in parts if isinstance(part, dict)), config))


def decoder_start(config: Mapping[str, object]) -> int | None:
    """The token that a decoder begins with, by an encoder-decoder's config.json; it may leave that to its generation
    settings."""
    start = config.get("decoder_start_token_id")
    if start is None:
        start = text_part(config).get("bos_token_id")
    return start if isinstance(start, int) else None


def is_multimodal(config: Mapping[str, object]) -> bool:
    """Whether a config.json describes a language model with a part that reads images."""
    return "vision_config" in config or "vq_config" in config


def quantisation(config: Mapping[str, object], folder: Path) -> str | None:
    """How a checkpoint is quantised already: None, or bitsandbytes' "nf4", "fp4" or "int8".

    Raises: InputError for any other method.
    """
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    said = (place.get(key) for place in places for key in ("quantization_config", "compression_config"))
    found = next(filter(None, said), None)
    if found is None:
        return None
    if isinstance(found, dict) and found.get("quant_method", "bitsandbytes") == "bitsandbytes":
        kind = found.get("bnb_4bit_quant_type", "fp4")
        if found.get("load_in_8bit"):
            return "int8"
        if found.get("load_in_4bit") and kind in ("nf4", "fp4"):
            return str(kind)
    method = found.get("quant_method") if isinstance(found, dict) else found
    raise InputError(
        f"{folder / CONFIG}: the model is quantised by {method!r}, which Align does not train on. Name the unquantised "
        "model that it was made from; with quantize: nf4 it takes as little memory."
    )


def _entries(config: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Every key of a JSON object and what stands there, however deep."""
    waiting = [config]
    while waiting:
        for key, inner in waiting.pop().items():
            yield key, inner
            several = inner if isinstance(inner, list) else [inner]
            waiting += [value for value in several if isinstance(value, dict)]
