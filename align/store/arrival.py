"""What an artifact may not hold when it leaves for a remote or arrives from one. The other side is taken for hostile.

`Artifact.parse` refuses manifests and names of files that could do harm in any store; here is what loaders would trip over: manifests
whose base or text contract no stage could read, safetensors that are none, and configs that name code, or weights, elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from align.console import COMMANDS
from align.errors import AlignError
from align.store.adapter import PRECISIONS, WEIGHTS, fault, read_tensors
from align.store.artifact import Artifact, is_digest

CONFIG_LIMIT = 16 << 20
"""Bytes of a JSON config."""
CODE_KEYS = ("auto_map", "auto_mapping", "custom_generate", "custom_pipelines", "megatron_config", "runtime_config", "trust_remote_code")
"""Settings by which a config makes a loader import code."""
_MARKUP = set("\n\t<>|`")
_PLAIN = set(" _.+@,()/:-")
"""What the name of a model may hold beside letters and digits: nothing that ends a literal, a line or a cell of a table."""
_PICKLES = {b"\x80" + bytes([protocol]) for protocol in range(2, 6)}
_ZIP = b"PK\x03\x04"


def check_contracts(artifact: Artifact) -> None:
    """Refuse a manifest whose names, base or text contract is not of the shape that every stage relies on.

    Raises: AlignError.
    """
    where = f"manifest {artifact.short}"
    for key, value in _entries(artifact.manifest):
        for text in (key, value):
            if isinstance(text, str) and COMMANDS.search(text):
                raise AlignError(f"{where}: {text[:60]!r} holds control characters; a terminal could take them for commands.")
        if set(key) & _MARKUP:
            raise AlignError(f"{where}: the key {key[:60]!r} holds a line break or markup; a page or a line could be forged with it.")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", artifact.stage):
        raise AlignError(f"{where}: stage is {artifact.stage[:60]!r}; expected the plain name of a stage.")
    for name, digest in artifact.data.items():
        if not is_digest(digest):
            raise AlignError(f"{where}: data.{name} is {digest!r}; expected a digest.")
    shapes: list[tuple[str, dict[str, Any] | None, dict[str, Callable[[Any], bool]]]] = [
        ("base", artifact.base, _BASE),
        ("text", artifact.text, _TEXT),
    ]
    for name, found, shape in shapes:
        if found is None:
            continue
        if found.keys() - shape.keys() or shape.keys() - found.keys() - _NEWER:
            raise AlignError(f"{where}: {name} has {', '.join(sorted(found)) or 'nothing'}; expected {', '.join(shape)}.")
        for key, fits in shape.items():
            if key in found and not fits(found[key]):
                raise AlignError(f"{where}: {name}.{key} is {str(found[key])[:80]!r}, which it cannot be.")
    if artifact.base and artifact.base["model"].startswith("artifact:") and artifact.base["model"] != f"artifact:{artifact.base['digest']}":
        raise AlignError(f"{where}: base.model is {artifact.base['model']!r}, but base.digest is {artifact.base['digest']}.")


def check_content(artifact: Artifact, name: str, path: Path) -> None:
    """Refuse what the file `name`, whose bytes lie at `path`, may not be.

    Raises: AlignError naming the file and the reason.
    """
    where = f"{name} of {artifact.stage} {artifact.short}"
    refuse_pickle(where, path)
    if name.endswith(".safetensors"):
        _check_safetensors(where, path)
        if name.rpartition("/")[2] == WEIGHTS:
            _check_precisions(where, path)
    elif name.endswith("config.json"):
        config = _read_config(where, path)
        for key, value in _entries(config):
            if key in CODE_KEYS and value:
                raise AlignError(f"{where}: it sets {key}, by which a loader runs code that came with it. Align stores and loads none.")
        if name.rpartition("/")[2] == "adapter_config.json":
            _check_adapter(where, config, artifact.base)


def refuse_pickle(where: str, path: Path) -> None:
    """Raises: AlignError when the file begins as a pickle does, or as the archives that PyTorch and NumPy put pickles in."""
    with open(path, "rb") as file:
        start = file.read(4)
    # a safetensors file begins with the length of its header, which may read as a pickle's mark: 896 is 80 03
    if start == _ZIP or (start[:2] in _PICKLES and not _is_safetensors(path)):
        raise AlignError(f"{where} is a pickle by its first bytes, which runs code when it is loaded. Tensors are stored as safetensors.")


def _is_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return True
    except (SafetensorError, OSError, ValueError):
        return False


def _check_safetensors(where: str, path: Path) -> None:
    """The library that loaders use reads the header: lengths, types, and offsets that fill the file without a gap or an overlap."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise AlignError(f"{where} is no complete safetensors file: {error}.") from error


def _check_precisions(where: str, path: Path) -> None:
    for tensor, (dtype, _) in read_tensors(path).items():
        if dtype not in PRECISIONS:
            raise AlignError(f"{where}: {tensor[:200]!r} is {dtype}; an adapter's tensors are {', '.join(PRECISIONS)}.")


def _check_adapter(where: str, config: dict[str, Any], base: dict[str, Any] | None) -> None:
    if why := fault(config):
        raise AlignError(f"{where}: {why}")
    named, known = config.get("base_model_name_or_path"), (base or {}).get("model")
    if named is not None and named != known:
        raise AlignError(f"{where}: it names the base {named!r}; its manifest says {known!r}.")


def _read_config(where: str, path: Path) -> dict[str, Any]:
    if path.stat().st_size > CONFIG_LIMIT:
        raise AlignError(f"{where} has {path.stat().st_size:,} bytes; a config has at most {CONFIG_LIMIT:,}.")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AlignError(f"{where} is no JSON: {error}.") from error
    if not isinstance(config, dict):
        raise AlignError(f"{where} holds a {type(config).__name__}; expected a JSON object.")
    return config


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and what stands there, however deep; what stands in a list has the key ""."""
    waiting = [("", value)]
    while waiting:
        key, inner = waiting.pop()
        yield key, inner
        waiting += inner.items() if isinstance(inner, dict) else [("", item) for item in inner] if isinstance(inner, list) else []


def _is_name(text: str) -> bool:
    """Whether a text can name a model of the hub or a folder, but no path that leads elsewhere, and nothing else than a name."""
    plain = all(sign.isalnum() or sign in _PLAIN for sign in text)
    return plain and len(text) <= 200 and not set(text.split("/")) & {"", ".", ".."}


def _id(value: Any) -> bool:
    return value is None or (type(value) is int and value >= 0)


_BASE: dict[str, Callable[[Any], bool]] = {
    "model": lambda v: isinstance(v, str) and _is_name(v),
    "revision": lambda v: v is None or (isinstance(v, str) and _is_name(v)),
    "digest": is_digest,
    "quantize": lambda v: v in (None, "nf4", "fp4", "int8"),
}
_NEWER = {"tokenizer_options", "template_date"}
"""Keys of the text contract that older artifacts lack."""
_TEXT: dict[str, Callable[[Any], bool]] = {
    "tokenizer": is_digest,
    "tokenizer_options": is_digest,
    "chat_template": is_digest,
    "template_date": lambda v: v is None or bool(re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(v))),
    "bos_token_id": _id,
    "eos_token_id": _id,
    "pad_token_id": _id,
    "stop_ids": lambda v: isinstance(v, list) and all(type(id_) is int and id_ >= 0 for id_ in v),
}
