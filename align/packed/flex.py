"""Attention over packed groups in one kernel, by FlexAttention (arXiv 2412.05496): blocks that no position sees are
skipped.

For CUDA, where the probe prefers it; on a CPU FlexAttention has no backward. Its mask is tested on a CPU, its kernels
have not been run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from align.packed.attention import Decoding, check_covered
from align.packed.pack import Layout, move

NAME = "align_flex"
BLOCK = 128
"""Rows and columns of a block of scores that is computed or skipped as one (FlexAttention's default)."""


def visible(layout: Layout, window: int | None, device: torch.device) -> Callable[..., Tensor]:
    """FlexAttention's mask function for a packed row: a position sees its group's prefix and its own branch,
    causally."""
    group, segment, position = [], [], []
    for g, (prefix, branches) in enumerate(layout.groups):
        group.append(torch.full((prefix + sum(branches),), g))
        segment += [torch.zeros(prefix, dtype=torch.long), *(torch.full((n,), s) for s, n in enumerate(branches, 1))]
        position += [torch.arange(prefix), *(torch.arange(prefix, prefix + n) for n in branches)]
    groups, segments, positions = (move(torch.cat(parts), device) for parts in (group, segment, position))

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        back = positions[query] - positions[key]
        seen = (
            (groups[query] == groups[key]) & ((segments[key] == 0) | (segments[query] == segments[key])) & (back >= 0)
        )
        return seen if window is None else seen & (back < window)

    return mask


def intervals(layout: Layout, window: int | None) -> np.ndarray:
    """(T, 2, 2): the rows that each row sees, as two intervals [from, to): of its prefix, and of its own branch (empty
    within prefixes)."""
    found, start = [], 0
    for prefix, branches in layout.groups:
        first = branch = start + prefix
        reach = window or prefix + max(branches)  # how many positions a row sees at most, itself among them
        rows = np.arange(start, first)
        nothing = np.zeros_like(rows)
        found.append(np.stack([np.maximum(start, rows - reach + 1), rows + 1, nothing, nothing], 1))
        for n in branches:
            rows = np.arange(branch, branch + n)
            before = np.arange(n) + first - reach + 1  # the first row of the prefix within reach
            own = np.maximum(branch, rows - reach + 1)
            found.append(np.stack([before.clip(start, first), np.full(n, first), own, rows + 1], 1))
            branch += n
        start = branch
    return np.concatenate(found).reshape(-1, 2, 2)


def block_mask(layout: Layout, window: int | None, like: Tensor) -> BlockMask:
    """Which blocks of keys each block of queries sees in part or whole; made once per packed row and window, and kept
    with its layout.

    torch's `create_block_mask` asks the mask function for all T x T pairs, or compiles for every new length.
    """
    key = (NAME, window, like.device)
    if key not in layout.masks:
        seen = intervals(layout, window)
        rows = len(seen)
        starts = np.arange(0, rows, BLOCK)
        # (T, blocks): how many keys of a block each row sees
        overlap = np.minimum(seen[:, :, 1, None], starts + BLOCK) - np.maximum(seen[:, :, 0, None], starts)
        pairs = np.add.reduceat(overlap.clip(min=0).sum(1), starts, axis=0)
        whole = pairs == BLOCK * BLOCK
        counts = [_indices((pairs > 0) & ~whole, like.device), _indices(whole, like.device)]
        layout.masks[key] = BlockMask.from_kv_blocks(
            *counts[0],
            *counts[1],
            BLOCK_SIZE=BLOCK,
            mask_mod=visible(layout, window, like.device),
            seq_lengths=(rows, rows),
        )
    return layout.masks[key]


def _indices(blocks: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks each row of `blocks` holds, (1, 1, Q), and which, first those (1, 1, Q, K)."""
    order = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    counts = torch.from_numpy(blocks.sum(1).astype(np.int32))
    return move(counts[None, None], device), move(torch.from_numpy(order)[None, None], device)


def _capped(softcap: float) -> Callable[..., Tensor]:
    """scores = cap * tanh(scores / cap), as in Gemma 2 (arXiv 2408.00118, section 2)."""
    return lambda score, batch, head, query, key: torch.tanh(score / softcap) * softcap


@cache
def _kernel(compiled: bool) -> Callable[..., Tensor]:
    attend = torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
    return cast("Callable[..., Tensor]", attend)


def flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    layout: Layout | Decoding | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """As `attention.grouped_attention`: query (1, H, T, d), key and value (1, H_kv, T, d) -> (1, T, H, d).

    Raises: ValueError where a model needs something that this function does not compute (the probe then looks further).
    """
    check_covered(layout, kwargs)
    if not isinstance(layout, Layout):
        assert layout is not None
        return layout.attend(module, query, key, value, scaling, sliding_window, softcap)
    out = _kernel(query.is_cuda)(
        query.to(value.dtype),
        key.to(value.dtype),
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=block_mask(layout, sliding_window, value),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, flex)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
