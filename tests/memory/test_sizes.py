"""Bytes counted by hand and by autograd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.memory import sizes
from align.memory.shapes import Shape, headers, norms_in
from tests.memory.workloads import TINY


def test_weights_by_hand():
    """One layer: q and o 8x8, k and v 8x4, gate, up and down 8x16: 576. Beside two of them: embeddings and head 32x8,
    five norms."""
    assert TINY.linear_weights == 2 * 576
    assert TINY.other_weights == 2 * 32 * 8 + 5 * 8
    assert sizes.base_weights(TINY, None, 4) == 4 * (2 * 576 + 552)
    # int8: one byte a weight and a 4-byte scale for each output: 8 + 4 + 4 + 8 + 16 + 16 + 8 a layer
    assert sizes.base_weights(TINY, "int8", 2) == 2 * 576 + 2 * 64 * 4 + 2 * 552
    # NF4: half a byte, 1/64 byte for the scale of 64 weights, 4 bytes for 64 * 256 weights
    assert sizes.base_weights(TINY, "nf4", 2) == round(1152 / 2 + 1152 / 64 + 4 * 1152 / 16384) + 2 * 552


@pytest.mark.parametrize(("dtype", "kv_heads"), [("float32", 4), ("float32", 2), ("bfloat16", 4)])
def test_kept_activations_are_what_autograd_keeps(dtype: str, kv_heads: int):
    """The bytes of all storages that one layer more saves for the backward, seen by autograd's own hooks, equal the
    count."""
    seen = [saved_bytes(dtype, kv_heads, layers) for layers in (2, 3)]
    shape = Shape("llama", 64, 1, 4, kv_heads, 16, 176, 500)
    fp32 = dtype == "float32"
    size = 4 if fp32 else 2
    per_token = lambda rank: sizes.kept_per_token(shape, rank, size=size, fused=True, by_matmul=not fp32)  # noqa: E731
    counted = lambda rank: 256 * per_token(rank) + sizes.factors_copied(shape, rank, size)  # noqa: E731
    assert seen[1] - seen[0] == counted(8)
    assert counted(9) != counted(8)


@pytest.mark.parametrize("bf16", [False, True])
def test_kept_activations_of_full_training_are_what_autograd_keeps(bf16: bool):
    """As above with every weight in training; in bf16 autocast also keeps each layer's matrices in bf16, which the plan
    counts apart."""
    seen = [saved_bytes("float32", 4, layers, full=True, autocast=bf16) for layers in (2, 3)]
    shape = Shape("llama", 64, 1, 4, 4, 16, 176, 500)
    copies = 2 * shape.linear_weights if bf16 else 0
    counted = sizes.kept_in_full_training(shape, bf16=bf16, by_matmul=bf16)
    assert (seen[1] - seen[0] - copies) / 256 == counted
    assert counted != sizes.kept_per_token(shape, 0, size=2 if bf16 else 4, fused=True, by_matmul=bf16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_last_layer_keeps_as_much_less_as_is_counted(dtype: str):
    """Of 256 rows 128 are read: in two sequences the 64 that predict what counts. Which ones is kept too, as whole
    numbers."""
    from align.packed import forward

    every, few = (saved_bytes(dtype, 4, 2, few=few) for few in (False, True))
    spared = sizes.spared_by_last_layer(
        Shape("llama", 64, 1, 4, 4, 16, 176, 500), 8, 256, 128, size=4 if dtype == "float32" else 2, fused=True
    )
    assert every - few == spared - 8 * 128
    assert sizes.unread_rows(256, 240) == 0 and sizes.MOST == forward.MOST


@pytest.mark.parametrize(("kind", "widths"), [("Gemma3Text", 4 * 64 + 4 * 16 + 2 * 16), ("Qwen3", 2 * 64 + 6 * 16)])
def test_norms_are_counted_as_the_files_have_them(kind: str, widths: int, tmp_path: Path):
    """Of a layer of Gemma 3 four norms of the hidden state and those of queries and keys, of Qwen 3 two and those, are
    what autograd keeps; by config.json alone, which says nothing of norms, it would be less."""
    model_of("bfloat16", 2, 1, kind).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    shape, plain = (Shape.from_config(config, None, norms) for norms in (norms_in(headers(tmp_path)), None))
    assert isinstance(shape, Shape) and isinstance(plain, Shape) and shape.norms == widths > plain.norms
    seen = [saved_bytes("bfloat16", 2, layers, kind=kind) for layers in (2, 3)]
    kept = sizes.kept_per_token(shape, 8, size=2, fused=True, by_matmul=True)
    assert seen[1] - seen[0] == 256 * kept + sizes.factors_copied(shape, 8, 2)


def model_of(dtype: str, kv_heads: int, layers: int, kind: str = "Llama") -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=16,
        pad_token_id=0,
        max_position_embeddings=256,
    )
    return transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))


def saved_bytes(
    dtype: str,
    kv_heads: int,
    layers: int,
    full: bool = False,
    autocast: bool = False,
    few: bool = False,
    kind: str = "Llama",
) -> int:
    """Bytes that a packed row of two sequences of 128 tokens saves, weights not counted; with an adapter, or `full` in
    training; `few` where only rows that count are read."""
    import torch

    from align.adapters.targets import lora_config
    from align.data.examples import Example
    from align.models.base import prepare
    from align.models.roles import Roles
    from align.packed.pack import pack

    roles = Roles(prepare(model_of(dtype, kv_heads, layers, kind)))
    if full:
        roles.assign("policy", [])
        roles.train_base()
    else:
        roles.add_adapter("policy", lora_config(8, 16, "all-linear", 0.0, roles.base))
        roles.assign("policy", ["policy"])
        roles.train_only("policy")
    weights = {p.untyped_storage().data_ptr() for p in roles.parameters()}
    examples = [Example((torch.randint(3, 500, (128,)).tolist(),), ([False] * 64 + [True] * 64,)) for _ in range(2)]
    storages: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        batch = pack(examples)
        roles.hidden_as("policy", batch, batch.rows if few else None)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
