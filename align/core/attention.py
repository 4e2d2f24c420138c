"""Exact attention over packed groups: each branch sees its shared prefix and itself.

Registered with transformers as the attention function `align_groups`. It covers grouped-query, sliding-window (counted in positions,
not in row offsets) and soft-capped attention, group by group, with torch's SDPA. Whether a model can be served by it is for
`align.core.probe` to find out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from align.core.pack import Layout

NAME = "align_groups"


def causal_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) booleans: the last `queries` of `keys` positions look at themselves and what came before, at most `window` back."""
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


def attend(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None, softcap: float | None) -> Tensor:
    """Causal attention of q (1, H, c, d) at the last c positions of k, v (1, H_kv, p + c, d)."""
    queries, keys = q.shape[2], k.shape[2]
    if window is not None and keys <= window:
        window = None
    # on a CPU the backward of SDPA's bf16 kernel takes 3 to 8 times as long as three matrix products, up to 512 keys
    slow_kernel = q.dtype is torch.bfloat16 and q.device.type == "cpu" and keys <= 512
    if softcap is not None or slow_kernel:
        return attend_by_matmul(q, k, v, q.shape[-1] ** -0.5 if scaling is None else scaling, window, softcap)
    gqa = q.shape[1] != k.shape[1]
    if queries == keys and window is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=gqa)
    mask = causal_mask(queries, keys, window, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=gqa)


def attend_by_matmul(q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None, softcap: float | None) -> Tensor:
    """The same written out; with `softcap`, scores = cap * tanh(scores / cap), as in Gemma 2 (arXiv 2408.00118, section 2)."""
    if (groups := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q * scaling) @ k.transpose(2, 3)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~causal_mask(q.shape[2], k.shape[2], window, q.device), -torch.inf)
    return torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature over a packed row: query (1, H, T, d), key and value (1, H_kv, T, d) -> (1, T, H, d).

    Raises: ValueError where a model needs something that this function does not compute (the probe then chooses the padded path).
    """
    if layout is None:
        raise ValueError("align_groups needs a layout; use `native_attention` for anything that is not a packed batch")
    if kwargs.get("s_aux") is not None or kwargs.get("dropout", 0.0) > 0.0:
        raise ValueError("attention sinks and attention dropout are not covered by packed groups")
    sizes = [n for prefix, branches in layout.groups for n in (prefix, *branches)]
    # split once: its backward is one cat, whereas slicing in a loop makes a full-size zero tensor per slice
    # (under autocast rotation leaves query and key in fp32)
    q, k, v = (x.to(value.dtype).split(sizes, 2) for x in (query, key, value))
    out: list[Tensor] = []
    i = 0
    for prefix, branches in layout.groups:
        for j in range(i + 1, i + 1 + len(branches)):
            if prefix == 0:
                out.append(attend(q[j], k[j], v[j], scaling, sliding_window, softcap))
            elif j == i + 1:  # the prefix and its first branch are one causal sequence
                qs, ks, vs = (torch.cat([x[i], x[j]], 2) for x in (q, k, v))
                out.append(attend(qs, ks, vs, scaling, sliding_window, softcap))
            else:
                ks, vs = torch.cat([k[i], k[j]], 2), torch.cat([v[i], v[j]], 2)
                out.append(attend(q[j], ks, vs, scaling, sliding_window, softcap))
        i += 1 + len(branches)
    return torch.cat(out, 2).transpose(1, 2), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)  # without its twin a registered function gets no mask, silently


def select_packed_attention(model: PreTrainedModel) -> None:
    """Make packed attention the model's own, and remember what transformers chose (eager where scores are soft-capped: SDPA drops caps)."""
    chosen = model.config._attn_implementation
    model.native_attention = "eager" if getattr(model.config, "attn_logit_softcapping", None) else chosen  # type: ignore[assignment]
    model.config._attn_implementation = NAME


def select_native_attention(model: PreTrainedModel) -> None:
    """Go back to transformers' own attention for good, for a base that the probe refused."""
    model.config._attn_implementation = str(model.native_attention)


@contextmanager
def native_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use transformers' own attention inside (sampling, padded rows); never around a forward whose backward comes later."""
    before = model.config._attn_implementation
    select_native_attention(model)
    try:
        yield
    finally:
        model.config._attn_implementation = before
