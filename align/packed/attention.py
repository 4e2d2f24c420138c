"""Exact attention over packed groups: each branch sees its shared prefix and itself.

Registered with transformers as the attention function `align_groups`. It covers grouped-query, sliding-window (counted
in positions, not in row offsets) and soft-capped attention, group by group, with torch's SDPA. Whether a model can be
served by it is for `align.packed.probe` to find out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from align.packed.again import again
from align.packed.pack import Layout

NAME = "align_groups"
WHOLE = 256
"""Groups of at most this many tokens are one call under a mask of their own; above it a call per branch wastes less
(measured, CPU)."""


class Decoding(Protocol):
    """A cache that attends for rows which grow: `align.sampling.decode.Cache`."""

    def attend(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> tuple[Tensor, None]: ...


def group_mask(prefix: int, branches: tuple[int, ...], window: int | None, device: torch.device) -> Tensor:
    """(L, L) booleans for a whole group of L tokens: a branch looks at its prefix and at itself, at most `window`
    positions back."""
    segments = torch.cat([torch.full((n,), i, device=device) for i, n in enumerate((prefix, *branches))])
    positions = torch.cat(
        [torch.arange(prefix, device=device), *(torch.arange(prefix, prefix + n, device=device) for n in branches)]
    )
    back = positions[:, None] - positions[None, :]
    seen = ((segments[None, :] == 0) | (segments[:, None] == segments[None, :])) & (back >= 0)
    return seen if window is None else seen & (back < window)


def branch_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """(queries, keys) booleans: the last `queries` of `keys` positions look at themselves and what came before, at most
    `window` back. None where that is plain causal attention of a square."""
    if window is not None and keys <= window:
        window = None
    if queries == keys and window is None:
        return None
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


def masks(layout: Layout, window: int | None, alone: bool, like: Tensor) -> list[list[Tensor | None]]:
    """Per group, the mask of each of its calls, to be added to the scores; made once per packed row and kept with its
    layout."""
    key = (window, alone, like.device, like.dtype)
    if key not in layout.masks:
        layout.masks[key] = [
            [additive(mask, like.dtype) for mask in _group_masks(prefix, branches, window, alone, like.device)]
            for prefix, branches in layout.groups
        ]
    return layout.masks[key]


def _group_masks(
    prefix: int, branches: tuple[int, ...], window: int | None, alone: bool, device: torch.device
) -> Iterator[Tensor | None]:
    if len(branches) > 1 and prefix + sum(branches) <= WHOLE:
        yield group_mask(prefix, branches, window, device)[prefix if alone else 0 :]
        return
    for i, n in enumerate(branches):  # the prefix and its first branch are one causal sequence
        yield branch_mask(prefix + n if i == 0 and not alone else n, prefix + n, window, device)


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask of booleans as what is added to scores."""
    return None if mask is None else torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    """Attention of q (1, H, c, d) on k, v (1, H_kv, s, d) under an additive mask (c, s), or causal where there is
    none."""
    # on a CPU the backward of SDPA's bf16 kernel takes 3 to 8 times as long as three matrix products, up to 512 keys
    slow_kernel = q.dtype is torch.bfloat16 and q.device.type == "cpu" and k.shape[2] <= 512
    if softcap is not None or slow_kernel:
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        compute = partial(attend_by_matmul, mask=mask, scaling=scale, softcap=softcap)
        # scores kept, in fp32 and rounded, would be a third of what a layer keeps, and are a fiftieth of its work
        return again(compute, q, k, v) if slow_kernel else compute(q, k, v)
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=gqa
    )


def attend_by_matmul(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    """`attend` written out; with `softcap`, scores = cap * tanh(scores / cap), as in Gemma 2 (arXiv 2408.00118, section
    2).

    Scores are in fp32 at least, as SDPA's kernels keep them: in bf16 one of 100 is rounded by a quarter.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    if (groups := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    with torch.autocast(q.device.type, enabled=False):  # it would round them again
        scores = (q.to(wide) * scaling) @ k.to(wide).transpose(2, 3)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = torch.full(scores.shape[2:], -torch.inf, dtype=scores.dtype, device=scores.device).triu(1)
    return torch.softmax(scores + mask, -1).to(v.dtype) @ v


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    layout: Layout | Decoding | None = None,
    branches_alone: bool = False,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention signature over a packed row: query (1, H, T, d), key and value (1, H_kv, T, d) -> (1, T,
    H, d). While sampling, `layout` is the cache, which attends by itself. With `branches_alone` prefixes are seen, but
    see nothing: 0 there.

    Raises: ValueError where a model needs something that this function does not compute (the probe then chooses the
    padded path).
    """
    check_covered(layout, kwargs)
    if not isinstance(layout, Layout):
        assert layout is not None
        return layout.attend(module, query, key, value, scaling, sliding_window, softcap)
    called = masks(layout, sliding_window, branches_alone, value)
    sizes = call_sizes(layout, called)
    asked = alone_sizes(layout, sizes) if branches_alone else sizes
    # split once: its backward is one cat, whereas slicing in a loop makes a full-size zero tensor per slice
    # (under autocast rotation leaves query and key in fp32)
    q = iter(query.to(value.dtype).split([*chain(*asked)], 2))
    k, v = (iter(x.to(value.dtype).split([*chain(*sizes)], 2)) for x in (key, value))
    out: list[Tensor] = []
    for calls, (prefix, branches) in zip(called, layout.groups, strict=True):
        if branches_alone:
            out.append(torch.zeros_like(next(q)))
        first_k, first_v = next(k), next(v)
        out.append(attend(next(q), first_k, first_v, calls[0], scaling, softcap))
        if len(calls) > 1:
            shared_k, shared_v = (x.split([prefix, branches[0]], 2)[0] for x in (first_k, first_v))
        for mask in calls[1:]:
            branch_k, branch_v = torch.cat([shared_k, next(k)], 2), torch.cat([shared_v, next(v)], 2)
            out.append(attend(next(q), branch_k, branch_v, mask, scaling, softcap))
    return torch.cat(out, 2).transpose(1, 2), None


def call_sizes(layout: Layout, called: list[list[Tensor | None]]) -> list[list[int]]:
    """Per group, the rows that each of its calls takes: the first the prefix and branches together with it."""
    sizes = []
    for calls, (prefix, branches) in zip(called, layout.groups, strict=True):
        first = len(branches) - len(calls) + 1
        sizes.append([prefix + sum(branches[:first]), *branches[first:]])
    return sizes


def alone_sizes(layout: Layout, sizes: list[list[int]]) -> list[list[int]]:
    """`sizes` with each prefix, which asks nothing, cut off."""
    groups = zip(layout.groups, sizes, strict=True)
    return [[prefix, first - prefix, *others] for (prefix, _), (first, *others) in groups]


def check_covered(layout: Layout | Decoding | None, kwargs: Mapping[str, object]) -> None:
    """Raises: ValueError for what packed attention does not compute."""
    if layout is None:
        raise ValueError(
            "packed attention needs a layout; use `native_attention` for anything that is not a packed batch"
        )
    dropout = kwargs.get("dropout", 0.0)
    if kwargs.get("s_aux") is not None or (isinstance(dropout, int | float) and dropout > 0.0):
        raise ValueError("attention sinks and attention dropout are not computed in packed rows")


AttentionInterface.register(NAME, grouped_attention)
# without its twin a registered function gets no mask, silently
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


def select_packed_attention(model: PreTrainedModel) -> None:
    """Make packed attention the model's own, and remember what transformers chose (eager where scores are soft-capped:
    SDPA drops caps). Attention in chunks (Llama 4) keeps transformers' own: nothing that is called says where chunks
    end. So does that of an encoder."""
    chosen = model.config._attn_implementation
    text = model.config.get_text_config()
    capped = getattr(text, "attn_logit_softcapping", None)
    model.native_attention = "eager" if capped else chosen  # type: ignore[assignment]
    if not getattr(text, "attention_chunk_size", None) and not model.config.is_encoder_decoder:
        model.config._attn_implementation = NAME


def select_native_attention(model: PreTrainedModel) -> None:
    """Go back to transformers' own attention for good, for a base that the probe refused."""
    model.config._attn_implementation = str(model.native_attention)


@contextmanager
def native_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use transformers' own attention inside (sampling, padded rows); never around a forward whose backward comes
    later."""
    before = model.config._attn_implementation
    select_native_attention(model)
    try:
        yield
    finally:
        model.config._attn_implementation = before
