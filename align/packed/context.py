"""One packed row over the processes of a run: each computes the hidden states of its part, from first layer to last.

Attention alone looks beyond a part. There keys and values of all parts are gathered, and their gradients added up and
dealt back (context parallel by all-gather: Dubey et al. 2024, arXiv 2407.21783, section 3.3.2). Hidden states are
gathered behind the last layer, so that heads and losses know nothing of it: every process computes the whole row's
loss. Of the gradient of an adapter each then has one of `world` summands, of that of a head all; what goes back into a
part is multiplied by `world`, so that means over the processes are right for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.packed.attention import additive, attend, branch_mask
from align.packed.pack import Batch, Layout


class Gathered(torch.autograd.Function):
    """(…, t, d) of each process -> (…, world x t, d), in the order of ranks. `alike`: all do the same with it, and have
    the same gradient; else each has its own, and they are added up."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, alike: bool) -> Tensor:
        ctx.alike = alike
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts, -2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        parts = torch.stack(grad.chunk(world := dist.get_world_size(), -2))
        if ctx.alike:
            return parts[dist.get_rank()] * world, None
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter_tensor(mine, parts.flatten(0, 1))
        return mine, None


@dataclass(frozen=True)
class RowPart:
    """Rows `start` to `stop` of a packed row, and `padding` more of no token: what attention needs to know of them."""

    layout: Layout
    start: int
    stop: int
    padding: int

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
        """q (1, H, t, d), k and v (1, H_kv, t, d) of this part -> (1, t, H, d)."""
        both = Gathered.apply(torch.cat([k.to(v.dtype), v]), False)  # (2, H_kv, world x t, d)
        lengths = [n for prefix, branches in self.layout.groups for n in (prefix, *branches)]
        segments = both.split([*lengths, both.shape[2] - sum(lengths)], 2)
        pieces = list(self.pieces())
        queries = q.to(v.dtype).split([*(stop - start for *_, start, stop in pieces), self.padding], 2)
        out = []
        for (prefix, segment, start, stop), asked in zip(pieces, queries[:-1], strict=True):
            own = segments[segment][:, :, :stop]
            seen = own if prefix is None else torch.cat([segments[prefix], own], 2)
            mask = self.mask(stop - start, seen.shape[2], window, v)
            out.append(attend(asked, seen[:1], seen[1:], mask, scaling, softcap))
        if self.padding:  # which takes part in what all gather
            out.append(both[1:, :, :1].repeat(1, q.shape[1] // v.shape[1], self.padding, 1))
        return torch.cat(out, 2).transpose(1, 2), None

    def pieces(self) -> Iterator[tuple[int | None, int, int, int]]:
        """What this part has of each segment: the segment of its prefix, if it is a branch; its own; rows from, to."""
        row = segment = 0
        for prefix, branches in self.layout.groups:
            head = segment
            for n in (prefix, *branches):
                start, stop = max(self.start - row, 0), min(self.stop - row, n)
                if start < stop:
                    yield None if segment == head else head, segment, start, stop
                row, segment = row + n, segment + 1

    def mask(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor | None:
        """Made once per packed row, and kept with its layout."""
        key = ("part", queries, keys, window, like.device, like.dtype)
        if key not in self.layout.masks:
            self.layout.masks[key] = additive(branch_mask(queries, keys, window, like.device), like.dtype)
        return cast("Tensor | None", self.layout.masks[key])


def hidden_states(model: PreTrainedModel, batch: Batch, rows: Tensor | None = None) -> Tensor:
    """Last hidden states of `rows (N)`, (N, D), or of all, (T, D), on every process; all have the same batch."""
    rank, world, length = dist.get_rank(), dist.get_world_size(), batch.input_ids.shape[1]
    size = -(-length // world)
    start, stop = min(rank * size, length), min((rank + 1) * size, length)

    def mine(row: Tensor) -> Tensor:
        return F.pad(row, (0, world * size - length))[:, rank * size : (rank + 1) * size]

    part = RowPart(batch.layout, start, stop, size - (stop - start))
    ids, positions = mine(batch.input_ids), mine(batch.position_ids)
    out = model.base_model(input_ids=ids, position_ids=positions, layout=part, use_cache=False)
    whole: Tensor = Gathered.apply(out.last_hidden_state[0], True)[:length]
    return whole if rows is None else whole[rows]
