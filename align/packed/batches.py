"""Examples as batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from align.data.examples import Example
from align.packed.pack import Batch, microbatches, pack


def batches(
    examples: Sequence[Example], tokens_per_microbatch: int, device: torch.device
) -> Iterator[tuple[list[int], Batch]]:
    """Every example once, packed: (indices into `examples`, batch)."""
    for indices in microbatches(examples, tokens_per_microbatch):
        yield indices, pack([examples[i] for i in indices]).to(device)
