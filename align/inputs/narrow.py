"""Does a frozen base stay in the 16 bits of its files where a run computes in fp32? It does where every figure is known
to come out as on a base in fp32 (`parallel/narrow.py`), in half the memory: on a CPU, unquantised and in no shards,
beside adapters of these methods, and large enough to be worth it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

from align.folders.adapter import SHAPE, STACKABLE, method_name
from align.folders.config import CONFIG, read_json
from align.folders.weights import tensors, weight_files
from align.inputs.bases import BaseModel
from align.store import Artifact, Store

IN_16_BITS = {"BF16": "bf16", "F16": "fp16"}
"""safetensors' names and ours."""
WORTH = 64 << 20
"""Bytes of weights from which on it pays: of smaller ones it saves little, and a step takes a twentieth longer."""
TRANSPOSED = ("gpt2", "openai-gpt")
"""Models whose layers are transformers' Conv1D."""
FEW = 0.1
"""Share of the weights that may be in fp32 beside the mapped files: such pages lie in memory too, once touched."""


def suits(config: object) -> bool:
    """Whether a stage with these settings trains nothing but an adapter of a proven method, at a start that is no part
    of the base: no weights of the base, rows of tokens, or whole models beside it."""
    adapter = getattr(config, "adapter", None)
    if adapter is None or adapter.method not in STACKABLE or adapter.init_lora_weights or adapter.experts:
        return False
    return not (hasattr(config, "method") or getattr(config, "new_tokens", None))


def kept_in(config: object, base: BaseModel, parents: Mapping[str, Artifact], store: Store) -> str | None:
    """bf16 or fp16, where the base stays in that; else None."""
    if not suits(config) or base.quantize or base.is_encoder_decoder:
        return None
    files = [(artifact, file) for artifact in parents.values() for file in artifact.files if file.endswith(f"/{SHAPE}")]
    if any(method_name(json.loads(store.read(artifact, file))) not in STACKABLE for artifact, file in files):
        return None
    files_of_base = weight_files(base.path, read_json(base.path / CONFIG))
    return stored_in(base.path) if sum(file.stat().st_size for file in files_of_base) >= WORTH else None


def stored_in(folder: Path) -> str | None:
    """bf16 or fp16, where a model's files hold nothing else, and hardly a weight that is widened when it is read:
    routed experts, transposed matrices and vectors would lie in memory twice."""
    settings = read_json(folder / CONFIG)
    held = [found for file in weight_files(folder, settings) for found in tensors(file).items()]
    types = {kind for _, (kind, _) in held}
    sizes = {name: prod(shape) for name, (_, shape) in held}
    widened = sum(sizes[name] for name, (_, shape) in held if len(shape) != 2 or ".experts." in name)
    if len(types) != 1 or widened > FEW * sum(sizes.values()) or settings.get("model_type") in TRANSPOSED:
        return None
    return IN_16_BITS.get(types.pop())
