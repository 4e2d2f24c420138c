"""Attention over packed groups in one kernel, by FlexAttention (arXiv 2412.05496): blocks that no position sees are skipped.

For CUDA, where the probe prefers it; on a CPU FlexAttention has no backward. Its mask is tested on a CPU, its kernels have not been run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from align.core.attention import Decoding, check_covered
from align.core.pack import Layout

NAME = "align_flex"


def visible(layout: Layout, window: int | None, device: torch.device) -> Callable[..., Tensor]:
    """FlexAttention's mask function for a packed row: a position sees its group's prefix and its own branch, causally."""
    group, segment, position = [], [], []
    for g, (prefix, branches) in enumerate(layout.groups):
        group.append(torch.full((prefix + sum(branches),), g))
        segment += [torch.zeros(prefix, dtype=torch.long), *(torch.full((n,), s) for s, n in enumerate(branches, 1))]
        position += [torch.arange(prefix), *(torch.arange(prefix, prefix + n) for n in branches)]
    groups, segments, positions = (torch.cat(parts).to(device) for parts in (group, segment, position))

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        back = positions[query] - positions[key]
        seen = (groups[query] == groups[key]) & ((segments[key] == 0) | (segments[query] == segments[key])) & (back >= 0)
        return seen if window is None else seen & (back < window)

    return mask


def block_mask(layout: Layout, window: int | None, like: Tensor) -> BlockMask:
    """Made once per packed row and window, and kept with its layout."""
    key = (NAME, window, like.device)
    if key not in layout.masks:
        rows = sum(prefix + sum(branches) for prefix, branches in layout.groups)
        make = torch.compile(create_block_mask) if like.is_cuda else create_block_mask
        layout.masks[key] = make(visible(layout, window, like.device), None, None, rows, rows, device=like.device)
    return layout.masks[key]


def _capped(softcap: float) -> Callable[..., Tensor]:
    """scores = cap * tanh(scores / cap), as in Gemma 2 (arXiv 2408.00118, section 2)."""
    return lambda score, batch, head, query, key: torch.tanh(score / softcap) * softcap


@cache
def _kernel(compiled: bool) -> Any:
    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


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
    **kwargs: Any,
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
