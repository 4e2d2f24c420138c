"""Stages and shapes that memory is planned for in tests."""

from __future__ import annotations

from typing import Any

from align import dpo, evaluate, grpo, memory, merge, pairs, ppo, pretrain, reward, sft
from align.memory.shapes import Shape
from align.stage import catalogue

GIB = 1 << 30
TINY = Shape("llama", hidden=8, layers=2, heads=2, kv_heads=1, head_size=4, intermediate=16, vocabulary=32, tied=False)
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}


MODULES = {m.__name__.split(".")[-1]: m for m in (dpo, evaluate, grpo, merge, pairs, ppo, pretrain, reward, sft)}
NEEDED: dict[str, dict[str, Any]] = {
    "ppo": {"reward": "none"},
    "grpo": {"judges": {"right": "judge.py:score"}},
    "pairs": {"judge": "judge.py:score"},
}


def footprint(kind: str) -> memory.Footprint:
    found = catalogue.stage_of(kind).footprint
    assert found is not None
    return found


def setup(kind: str = "sft", shape: Shape = TINY, **settings: Any) -> memory.Workload:
    """A stage on a fresh base, on a GPU in bf16."""
    given = {"base": "none", "data": "none"} | NEEDED.get(kind, {}) | settings
    inputs = {key: given.pop(key) for key in ("rewards", "parent") if key in given}
    inputs.setdefault("rewards", ((1000,),) if kind == "ppo" else ())
    quantize = given.pop("quantize", None)
    return on_gpu(kind, MODULES[kind].Config(**given), shape, quantize=quantize, **inputs)


def parts_of(planned: memory.MemoryPlan, phase: str) -> dict[str, int]:
    (found,) = [p for p in planned.phases if p.name == phase]
    return {part.name: part.bytes for part in found.parts}


def llama_8b() -> Shape:
    shape = Shape.from_config(LLAMA_8B)
    assert isinstance(shape, Shape)
    return shape


def on_gpu(
    kind: str, config: Any, shape: Shape, *args: Any, quantize: str | None = None, **more: Any
) -> memory.Workload:
    """A stage of these settings on a GPU in bf16."""
    return memory.Workload(footprint(kind), config, shape, quantize, "cuda", True, *args, **more)
