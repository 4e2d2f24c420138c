"""Blocks of logits that a distillation holds at a time, beside what is alive between torch's operations."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import LlamaConfig, LlamaForCausalLM

from align.distillation.outcomes import divergences, likeliest
from align.memory import sizes
from align.memory.shapes import Shape
from align.packed.head import Head

ROWS, VOCABULARY = 48, 20_000


class Alive(TorchDispatchMode):
    """The most bytes of storages that operations made and that were alive together."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_logits_as_counted(dtype: torch.dtype) -> None:
    """A student's backward through its own: within 15 % of what is alive. A teacher's likeliest tokens: no less than
    that, to which logsumexp adds less than a block inside of its operation."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    head = Head(LlamaForCausalLM(config).to(dtype).requires_grad_(False))
    hidden = torch.randn(ROWS, 16, dtype=dtype, requires_grad=True)
    shape = Shape("llama", 16, 1, 2, 2, 8, 16, VOCABULARY)

    def counted(copies: int) -> int:
        return sizes.head_chunk(shape, ROWS, dtype.itemsize, "cpu", copies)

    with Alive() as teacher:
        ids, logprobs = likeliest(head, hidden, 64, VOCABULARY)
    with Alive() as student:
        divergences(head, hidden, ids, logprobs.float(), 0.5, VOCABULARY)[0].sum().backward()
    block = 4 * ROWS * VOCABULARY
    assert teacher.peak < counted(sizes.LIKELIEST) < teacher.peak + 2 * block
    assert counted(sizes.DIVERGENCES) == pytest.approx(student.peak, rel=0.15)
    assert counted(sizes.LOGPROBS) < 0.4 * student.peak
