"""NEFTune: uniform noise on the embeddings of what is trained on (Jain et al. 2023, arXiv 2310.05914, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from align.data.examples import Example
from align.models.roles import Roles
from align.packed.pack import Batch


def apart(examples: Sequence[Example]) -> list[Example]:
    """The examples with a prompt of their own each: every sequence has noise of its own, of its own length's scale."""
    return [replace(example, shared=0) for example in examples]


@contextmanager
def noisy(roles: Roles, batch: Batch, alpha: float) -> Iterator[None]:
    """Inside, embeddings of sequences of L tokens of width D have noise from -alpha / sqrt(L D) to alpha / sqrt(L D).
    Raises: ValueError where the batch shares a prefix, which would have several lengths."""
    if any(prefix for prefix, _ in batch.layout.groups):
        raise ValueError("a prefix that sequences share has no noise of its own")
    lengths = torch.tensor([n for _, branches in batch.layout.groups for n in branches], device=batch.input_ids.device)

    def add(module: nn.Module, given: object, out: Tensor) -> Tensor:
        """`out` (1, T, D) of a packed row, or (S, L, D) of its sequences in rows of their own."""
        packed = out.shape[:2] == batch.input_ids.shape
        each = lengths.repeat_interleave(lengths)[None, :, None] if packed else lengths[:, None, None]
        scale = alpha / (each * out.shape[2]).double().sqrt()
        return out + torch.empty_like(out).uniform_(-1, 1) * scale.to(out.dtype)

    handle = roles.base.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
