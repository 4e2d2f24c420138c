"""Growing samples one token at a time: keys and values of a prompt are computed and kept once for all of its samples.

R rows (samples) grow in step, each on one of G prompts. One forward takes the newest token of every row as one flat row
of R tokens, so nothing is padded but the prompts' keys. Rows that have ended leave by `keep`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from align.packed.attention import grouped_attention
from align.packed.pack import Layout

Pair = tuple[Tensor, Tensor]
Call = tuple[int, int]
"""A layer, and which of its attentions in one forward: DiffLlama has two."""


class Cache:
    """Keys and values of every layer. Given as `layout` to a model that attends by `align_groups`: the first forward
    takes the prompts, packed, and every later one the newest token of each row."""

    def __init__(self, lengths: Sequence[int], n: int, max_new_tokens: int, device: torch.device):
        self.layout = Layout(tuple((0, (length,)) for length in lengths))
        self.lengths = torch.tensor(lengths, device=device)  # (G,)
        self.max_new_tokens = max_new_tokens
        self.prompt: dict[Call, Pair] = {}  # keys and values (G, H_kv, P, d), padded on the right
        self.own: dict[Call, Pair] = {}  # keys and values (R, H_kv, max_new_tokens, d)
        self.calls: Counter[int] = Counter()  # of each layer in the present forward
        self.grown = 0  # tokens of every row whose keys are kept
        self._place(torch.arange(len(lengths), device=device).repeat_interleave(n))
        starts = self.lengths.cumsum(0) - self.lengths
        within = torch.arange(max(lengths), device=device).clamp(max=self.lengths[:, None] - 1)
        self._index = starts[:, None] + within  # (G, P): where the packed row holds each prompt's positions

    @property
    def positions(self) -> Tensor:
        """(1, R): positions of the tokens that come next."""
        return (self.lengths[self.owner] + self.grown)[None]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but `rows` (indices, ascending), and the prompts that none of them grows on."""
        groups, owner = torch.unique(self.owner[rows], return_inverse=True)
        if len(groups) < len(self.lengths):
            self.lengths = self.lengths[groups]
            self.prompt = {
                layer: (k.index_select(0, groups), v.index_select(0, groups)) for layer, (k, v) in self.prompt.items()
            }
        for layer, pair in self.own.items():
            kept = tuple(x.new_empty(len(rows), *x.shape[1:]) for x in pair)
            for new, old in zip(kept, pair, strict=True):
                new[:, :, : self.grown] = old[:, :, : self.grown].index_select(0, rows)
            self.own[layer] = kept  # type: ignore[assignment]
        self._place(owner)

    def _place(self, owner: Tensor) -> None:
        """Put rows, `owner (R,)` ascending, into a grid of G x width cells, so that those of one prompt are multiplied
        together."""
        counts = torch.bincount(owner, minlength=len(self.lengths))
        self.owner, self.width = owner, int(counts.max())
        self.cell = (
            owner * self.width + torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        )
        self._seen: dict[int | None, Tensor] = {}

    def _to_grid(self, x: Tensor) -> Tensor:
        """(R, H_kv, h, c) -> (G, H_kv, width * h, c)."""
        groups = len(self.lengths)
        cells = x
        if len(x) != groups * self.width:
            cells = x.new_zeros(groups * self.width, *x.shape[1:]).index_copy_(0, self.cell, x)
        return cells.unflatten(0, (groups, self.width)).transpose(1, 2).flatten(2, 3)

    def _from_grid(self, x: Tensor) -> Tensor:
        """(G, H_kv, width * h, c) -> (R, H_kv, h, c)."""
        cells = x.unflatten(2, (self.width, -1)).transpose(1, 2).flatten(0, 1)
        return cells if len(self.owner) == len(cells) else cells[self.cell]

    def _unseen(self, window: int | None, like: Tensor) -> Tensor:
        """(G, 1, 1, P): what is added to the scores of a prompt's keys: -inf at padding and beyond `window`."""
        if window not in self._seen:
            at = torch.arange(like.shape[-1], device=like.device)
            seen = at < self.lengths[:, None]
            if window is not None:
                seen &= self.lengths[:, None] + self.grown - at < window
            self._seen[window] = torch.zeros_like(seen, dtype=like.dtype).masked_fill_(~seen, -torch.inf)[:, None, None]
        return self._seen[window]

    def attend(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> tuple[Tensor, None]:
        """Attention of one layer, as transformers calls it: q and k (1, H, T, d), v (1, H_kv, T, d') -> (1, T, H,
        d')."""
        index = int(cast(Any, module.layer_idx))
        layer: Call = (index, self.calls[index])
        self.calls[index] += 1
        if layer not in self.prompt:
            of_prompts = [x[0][:, self._index].transpose(0, 1).contiguous() for x in (k, v)]
            self.prompt[layer] = of_prompts[0], of_prompts[1]
            return grouped_attention(module, q, k, v, None, scaling, window, softcap, self.layout)
        rows, kv_heads = len(self.owner), k.shape[1]  # R, H_kv; from here on T is R
        if layer not in self.own:
            shape = (rows, kv_heads, self.max_new_tokens)
            self.own[layer] = (k.new_empty(*shape, k.shape[-1]), v.new_empty(*shape, v.shape[-1]))
        for kept, new in zip(self.own[layer], (k, v), strict=True):
            kept[:, :, self.grown] = new[0].transpose(0, 1)  # (R, H_kv, d)
        first = 0 if window is None else max(0, self.grown + 1 - window)
        own_k, own_v = (x[:, :, first : self.grown + 1] for x in self.own[layer])  # (R, H_kv, s, d), s seen of its own
        prompt_k, prompt_v = self.prompt[layer]  # (G, H_kv, P, d)
        wide = torch.promote_types(q.dtype, torch.float32)  # of scores, as in `attention.attend_by_matmul`
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        queries = q[0].to(wide).transpose(0, 1).unflatten(1, (kv_heads, -1)) * scale  # (R, H_kv, h, d), h = H / H_kv
        on_prompt = self._to_grid(queries) @ prompt_k.to(wide).transpose(2, 3)  # (G, H_kv, width * h, P)
        on_own = queries @ own_k.to(wide).transpose(2, 3)  # (R, H_kv, h, s)
        if softcap is not None:
            on_prompt, on_own = (torch.tanh(x / softcap) * softcap for x in (on_prompt, on_own))
        seen = self._from_grid(on_prompt + self._unseen(window, on_prompt))  # (R, H_kv, h, P)
        scores = torch.cat([seen, on_own], -1)  # (R, H_kv, h, P + s)
        shares = torch.softmax(scores, -1).to(v.dtype)
        to_prompt, to_own = shares.split([on_prompt.shape[-1], on_own.shape[-1]], -1)
        out = self._from_grid(self._to_grid(to_prompt) @ prompt_v) + to_own @ own_v  # (R, H_kv, h, d')
        return out.flatten(1, 2)[None], None

    def grow(self) -> None:
        """A forward is over: every layer has taken the prompts, or the newest token."""
        self.calls.clear()
        if self.own:
            self.grown += 1
            if any(window is not None for window in self._seen):
                self._seen.clear()
