"""A model's weight files: which ones transformers reads, and whether they are whole, by their headers alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from align.folders.config import CONFIG, quantisation, read_json, text_part
from align.ground.errors import InputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F64", "F32", "F16", "BF16"}
"""What safetensors calls the types of plain weights."""
Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Name -> type as safetensors has it, and sizes."""
OTHER_WEIGHTS = {
    "a pickle, which can hold code": (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".distcp"),
    "GGUF, a format for inference": (".gguf",),
    "a format of TensorFlow, Flax or another runtime": (".h5", ".msgpack", ".ot", ".onnx", ".npz"),
}


def check_weights(folder: Path, config: Mapping[str, object]) -> None:
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
            f"{folder}: its weight files hold {there}, for the {layers} layers of {CONFIG}. "
            "Its files do not belong together."
        )
    places = _index(folder, config)
    if places:
        _check_index(folder, places, held)
    types = {name: dtype for found in held.values() for name, (dtype, _) in found.items()}
    _check_types(folder, types, quantisation(config, folder))


def _check_index(folder: Path, places: Mapping[str, str], held: Mapping[str, Tensors]) -> None:
    """An index and the files hold the same tensors. Raises: InputError naming one."""
    for name, file in places.items():
        if name not in held[file]:
            raise InputError(f"{folder}: {INDEX} says that {name} is in {file}, and it is not. Copy the folder again.")
    for file, name in ((file, name) for file, found in held.items() for name in found):
        if places.get(name) != file:  # transformers takes whatever a file holds, of two the one that it reads last
            said = f"places in {places[name]}" if name in places else "does not name"
            raise InputError(
                f"{folder}: {file} holds {name}, which {INDEX} {said}. Copy the folder again, or save the model again."
            )


def _check_types(folder: Path, types: Mapping[str, str], own: str | None) -> None:
    """Tensors, by their names and types, are packed as the checkpoint says it is quantised; where it says nothing they
    are floats.

    Raises: InputError naming one.
    """
    mark = ".SCB" if own == "int8" else f".quant_state.bitsandbytes__{own}"
    if own and not any(name.endswith(mark) for name in types):
        raise InputError(
            f"{folder}: {CONFIG} says that the model is quantised in {own}, "
            "and its weight files hold nothing of the kind."
        )
    odd = [name for name, dtype in types.items() if name.endswith("weight") and dtype not in FLOATS]
    if odd and not own:
        raise InputError(
            f"{folder}: its weight files hold {odd[0]} as {types[odd[0]]}, and {CONFIG} says nothing of quantisation. "
            "Name the unquantised model that it was made from."
        )


def weight_files(folder: Path, config: Mapping[str, object]) -> list[Path]:
    """The files that transformers reads weights from. Raises: InputError where some are missing, or are no files of
    this folder."""
    name = _named(folder, config)
    names = sorted(set(_index(folder, config).values())) if name.endswith(".index.json") else [name]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        if len(names) == 1 and names[0] == WEIGHTS:
            raise InputError(f"{folder} has no {WEIGHTS} and no {INDEX}, so no weights.{instead(folder)}")
        raise InputError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files: {', '.join(missing[:3])}. "
            "Fetch or copy them again."
        )
    if any(re.fullmatch(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors", path.name) for path in folder.iterdir()):
        raise InputError(
            f"{folder} holds a distributed checkpoint (shard-….safetensors). "
            "Save it whole with transformers' save_pretrained."
        )
    return [folder / name for name in names]


def _named(folder: Path, config: Mapping[str, object]) -> str:
    """The file that weights are read from, or that lists those."""
    named = config.get("transformers_weights")
    if named is None:
        return INDEX if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file() else WEIGHTS
    endings = (".safetensors", ".safetensors.index.json")
    if not (isinstance(named, str) and _is_plain(named) and named.endswith(endings)):
        raise InputError(
            f"{folder / CONFIG}: transformers_weights is {named!r}; expected a safetensors file of this folder."
        )
    return named


def types(folder: Path, config: Mapping[str, object]) -> set[str]:
    """The types of a folder's weights, as safetensors calls them."""
    return {kind for file in weight_files(folder, config) for kind, _ in tensors(file).values()}


def _index(folder: Path, config: Mapping[str, object]) -> dict[str, str]:
    """Tensors and the files that hold them, where an index lists them. Raises: InputError."""
    if not (name := _named(folder, config)).endswith(".index.json"):
        return {}
    found = read_json(folder / name).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise InputError(
            f"{folder / name} has no weight_map that names a file for each tensor. Fetch or copy it again."
        )
    files = sorted(set(found.values()))
    outside = [file for file in files if not (_is_plain(file) and file.endswith(".safetensors"))]
    if outside:
        raise InputError(
            f"{folder / name} names {outside[0]!r}; expected names of safetensors files in the same folder."
        )
    return found


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def tensors(path: Path) -> Tensors:
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


def instead(folder: Path) -> str:
    """What a folder without a model in our layout holds, and the remedy, as a sentence; "" where nothing is known."""
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return " It is empty."
    if "adapter_config.json" in names:
        return " It holds an adapter: `align import` it on its base."
    for what, endings in OTHER_WEIGHTS.items():
        found = [name for name in names if name.endswith(endings) and name != "training_args.bin"]
        if found:
            remedy = (
                "Load it with transformers where you trust it and save it again: save_pretrained writes safetensors."
            )
            return f" It holds {found[0]}, {what}. {remedy}"
    if WEIGHTS in names or INDEX in names:
        return f" It holds {WEIGHTS if WEIGHTS in names else INDEX}: copy the other files of that model too."
    found = [name for name in names if name.endswith(".safetensors")]
    if found:
        return (
            f" It holds {found[0]}: rename it if that is the model, or fetch the model in the layout of transformers."
        )
    return ""
