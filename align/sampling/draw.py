"""Drawing one token per row from logits that come in blocks of the vocabulary, so that a block is worked off while it
is in the cache.

By the inverse of the distribution function in two steps, the block and then the token in it: exactly the softmax of the
logits, no top-k. `torch.multinomial` draws a number per token of the vocabulary, and one running sum in fp64 over all
of it takes longer than the head.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def draw(blocks: Iterable[Tensor], at: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token per row, and its log-prob: each (N,).

    Args:
        blocks: logits, (N, width) each, from left to right over the vocabulary; they are overwritten.
        at: (N,) uniform numbers in [0, 1), fp64. None takes the likeliest token, with log-prob 0.
    """
    if at is None:
        return _likeliest(blocks)
    parts, found_tops, found_sums = [], [], []
    for z in blocks:
        top = z.amax(1).clamp(min=torch.finfo(z.dtype).min)  # a block may be -inf throughout
        parts.append(z.sub_(top[:, None]).exp_())
        found_tops.append(top)
        found_sums.append(parts[-1].sum(1))
    tops, sums = torch.stack(found_tops, 1).double(), torch.stack(found_sums, 1).double()  # (N, blocks)
    shares = sums * (tops - tops.amax(1, keepdim=True)).exp()
    ends = shares.cumsum(1)
    goal = at[:, None] * ends[:, -1:]
    block = _first_above(ends, goal)
    left = (goal - ends.gather(1, block)) / shares.gather(1, block) + 1  # how far into the block, in [0, 1]
    inside = _rows_of(parts, block[:, 0])
    running = inside.cumsum(1, dtype=torch.float64)
    token = _first_above(running, left.clamp(0, 1) * running[:, -1:])
    share = inside.gather(1, token).double() / sums.gather(1, block) * (shares.gather(1, block) / ends[:, -1:])
    return (block * parts[0].shape[1] + token)[:, 0], share.log()[:, 0].to(inside.dtype)


def uniforms(rows: int, device: torch.device) -> Tensor:
    """(rows,) fp64 in [0, 1), from torch's global generator."""
    return torch.rand(rows, dtype=torch.float64, device=device)


def _likeliest(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    tops, places, start = [], [], 0
    for z in blocks:
        top, place = z.max(1)
        tops.append(top)
        places.append(place + start)
        start += z.shape[1]
    best = torch.stack(tops, 1).argmax(1, keepdim=True)
    return torch.stack(places, 1).gather(1, best)[:, 0], torch.zeros_like(tops[0])


def _first_above(ends: Tensor, goal: Tensor) -> Tensor:
    """(N, 1): index of the first of ascending `ends (N, K)` above `goal (N, 1)`; where rounding took that to the very
    end, the last that has a share."""
    return torch.searchsorted(ends, torch.minimum(goal, torch.nextafter(ends[:, -1:], ends.new_zeros(()))), right=True)


def _rows_of(parts: list[Tensor], which: Tensor) -> Tensor:
    """(N, width): row i of `parts[which[i]]`, zeros behind a part that is shorter."""
    if len(parts) == 1:
        return parts[0]
    out = parts[0].new_zeros(parts[0].shape)
    for i in which.unique().tolist():
        rows = which == i
        out[rows, : parts[i].shape[1]] = parts[i][rows]
    return out
