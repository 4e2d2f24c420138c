"""The language-model head over rows of hidden states: log-probs and entropies without ever holding (T, V).

Of a frozen head the vocabulary is taken block by block: softmax's sums are kept relative to the largest logit so far
(Milakov and Gimelshein 2018, arXiv 1805.02867, algorithm 3), and with them the sums that the derivatives need, as
FlashAttention does (arXiv 2205.14135, algorithm 1). With z the logits, p = softmax(z), H the entropy and W the head's
rows,

    d log p_target / d hidden = W_target - sum_v p_v W_v,        d H / d hidden = - sum_v p_v (log p_v + H) W_v,

so that one pass gives values and derivatives: backward is a multiplication, no logit is computed twice, and memory is
flat in V. Rows that adapters put in the place of the base's (`token_rows.py`) train beside a frozen head: with r one of
them and z_r its logit,

    d log p_target / d r = ([target is r] - p_r) hidden,        d H / d r = - p_r (log p_r + H) hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from align.packed.head import Head
from align.parallel.gather import gathered

ROWS = 1024
"""Rows taken at a time."""
ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 26}
"""Logits held at a time (rows x block of the vocabulary): 32 MiB in fp32 on a CPU, 256 MiB on a GPU. Narrower blocks
are slower: what is summed, (rows, D), is gone through once a block (on a CPU 1.5 to 2.8 times as long at 4 MiB, for D
of 256 to 896)."""


class _Frozen(torch.autograd.Function):
    """Log-probs (N) of targets and entropies (N) of rows (N, D); `entropy` False leaves the second out (zeros without
    derivative). `replaced` are the head's rows that train, each (k, D).

    Each row's gradient is a scalar times that row's own derivative, which makes this exact for any loss, as long as the
    head is frozen.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: Head, temperature: float, entropy: bool, *replaced: Tensor
    ) -> tuple[Tensor, Tensor]:
        parts = [
            _walk(head, h, t, temperature, entropy, True)
            for h, t in zip(hidden.split(ROWS), targets.split(ROWS), strict=True)
        ]
        logprobs, entropies, total, *slopes = (torch.cat(several) for several in zip(*parts, strict=True))
        ctx.slopes = len(slopes)
        found = [
            _slopes_of_rows(head, hidden, targets, ids, rows, total, entropies if entropy else None, temperature)
            for ids, rows in (head.replaced() if replaced else ())
        ]
        of_rows = [slope for several in found for slope in several]
        ctx.save_for_backward(*(slope.to(hidden.dtype) for slope in slopes), *of_rows, *([hidden] if replaced else []))
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved, n = ctx.saved_tensors, ctx.slopes

        def weighed(slopes: Sequence[Tensor]) -> Tensor:
            grad = slopes[0] * upstream[0].to(slopes[0].dtype)[:, None]
            for slope in slopes[1:]:
                grad.addcmul_(slope, upstream[1].to(slope.dtype)[:, None])
            return grad

        of_rows = [weighed(saved[i : i + n]) for i in range(n, len(saved) - 1, n)]  # (N, k) each
        grads = [grad.T @ saved[-1].to(grad.dtype) for grad in of_rows]
        return weighed(saved[:n]), None, None, None, None, *grads


def _slopes_of_rows(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    ids: Tensor,
    rows: Tensor,
    total: Tensor,
    entropies: Tensor | None,
    temperature: float,
) -> list[Tensor]:
    """Derivatives of log-probs, and of `entropies (N)` where given, by the products (N, k) of `hidden (N, D)` with
    `rows (k, D)`; `total` (N) is the logarithm of the softmax's sum."""
    dtype = head.dtype
    z, bend = head.product(hidden.to(dtype), rows.to(dtype), ids, temperature)
    logp = z - total[:, None]
    p = logp.exp()
    slopes = [torch.where(targets[:, None] == ids, -logp.expm1(), -p)]  # 1 - p where p may be near 1
    if entropies is not None:
        slopes.append(-p * (logp + entropies[:, None]))
    return [slope * (head.scale / temperature) * (1.0 if bend is None else bend) for slope in slopes]


def _walk(
    head: Head, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool, slopes: bool
) -> tuple[Tensor, ...]:
    """One pass over the vocabulary: log-probs, entropies (zeros without `entropy`), the logarithm of the softmax's sum,
    each (N), and with `slopes` the derivatives of the first two by `hidden`, each (N, D)."""
    words = len(head.matrix)  # V
    x, n, dtype = hidden.to(head.dtype), len(hidden), torch.promote_types(hidden.dtype, torch.float32)
    top = x.new_full((n,), torch.finfo(dtype).min / 4, dtype=dtype)  # (N,): the largest logit so far
    # sums over the vocabulary so far, with e = exp(z - top): of e and e (z - top), (N,)
    total, spread = top.new_zeros(n), top.new_zeros(n)
    # and of e W and e (z - top) W, (N, D)
    pulled = top.new_zeros(n, x.shape[1]) if slopes else None
    pulled_spread = top.new_zeros(n, x.shape[1]) if slopes and entropy else None
    # the targets' logits, from the very products that are summed, and their derivative, (N,)
    own, own_bend = top.new_zeros(n), top.new_zeros(n)
    # on a CPU no more of the head than of logits, which may be widened
    most = x.shape[1] if x.device.type == "cpu" else 1
    size = max(1, ELEMENTS[x.device.type] // max(n, most))
    for start in range(0, words, size):
        z, bend, rows = head.block(x, slice(start, start + size), temperature)  # (N, block) twice, (block, D)
        here = (targets >= start) & (targets < start + size)  # (N,): whose target is in this block
        place = (targets - start).clamp(0, z.shape[1] - 1)[:, None]  # (N, 1): where in the block
        own = torch.where(here, z.gather(1, place)[:, 0], own)
        if bend is not None:
            own_bend = torch.where(here, bend.gather(1, place)[:, 0], own_bend)
        new_top = torch.maximum(top, z.amax(1))
        sunk, top = top - new_top, new_top  # (N,): what sums so far are relative to has risen by -sunk
        shrink = sunk.exp()
        if entropy:
            spread = shrink * (spread + sunk * total)
        if pulled_spread is not None and pulled is not None:
            pulled_spread.addcmul_(pulled, sunk[:, None]).mul_(shrink[:, None])
        if pulled is not None:
            pulled.mul_(shrink[:, None])
        total.mul_(shrink)
        z.sub_(top[:, None])
        e = z.exp() if entropy else z.exp_()  # (N, block)
        total += e.sum(1)
        weighted = e.mul(z) if entropy else None  # (N, block)
        if weighted is not None:
            spread = spread + weighted.sum(1)
        for sums, shares in ((pulled, e), (pulled_spread, weighted)):  # (N, D) += (N, block) (block, D)
            if sums is not None and shares is not None:
                shares.scatter_(1, place, shares.gather(1, place).masked_fill_(here[:, None], 0.0))
                _add_product(sums, shares if bend is None else shares.mul_(bend), rows)
        del z, e, weighted, shares, rows  # before the next block is made, whose rows may be widened
    mean = spread / total  # (N,): of z - top
    logprobs = own - top - total.log()
    values = (logprobs, total.log() - mean if entropy else torch.zeros_like(top), top + total.log())
    if pulled is None:
        return values
    pull = head.rows_of(targets).to(dtype)  # (N, D)
    if bend is not None:
        pull *= own_bend[:, None]
    found = _slopes(pulled.div_(total[:, None]).neg_(), pulled_spread, pull, total, mean, own - top, logprobs)
    return *values, *(slope.mul_(head.scale / temperature) for slope in found)


def _slopes(
    slope: Tensor,
    pulled_spread: Tensor | None,
    pull: Tensor,
    total: Tensor,
    mean: Tensor,
    own: Tensor,
    logprobs: Tensor,
) -> list[Tensor]:
    """Derivatives by the hidden states (N, D): of log-probs, and of entropies where `pulled_spread (N, D)` is given.

    `slope` (N, D) is - sum_v p_v W_v without the target's part, `pull` (N, D) the target's row; `own` (N) its logit and
    `mean` (N) the mean one, relative to the largest.
    """
    parts = [slope]
    if pulled_spread is not None:
        spread_slope = pulled_spread.div_(total[:, None]).neg_().addcmul_(slope, mean[:, None], value=-1)
        parts.append(spread_slope.addcmul_(pull, (logprobs.exp() * (own - mean))[:, None], value=-1))
    # 1 - p of the target, whose part is left out of the products: where p is near 1, their rounding would be larger
    # than the slope
    parts[0] = slope.addcmul(pull, -logprobs.expm1()[:, None])
    return parts


def _add_product(sums: Tensor, shares: Tensor, weight: Tensor) -> None:
    """sums (N, D) += shares (N, block) W (block, D), computed in the precision of W."""
    if sums.dtype == weight.dtype:
        sums.addmm_(shares, weight)
    else:
        sums += shares.to(weight.dtype) @ weight


def _plainly(head: Head, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies (N) by autograd, for a head that trains."""
    logits = head(hidden)
    logp = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, -1)
    logprobs = logp.gather(1, targets[:, None])[:, 0]
    return logprobs, -(logp.exp() * logp).sum(-1) if entropy else torch.zeros_like(logprobs)


def _rows(head: Head, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    if len(targets) == 0:
        nothing = hidden.sum() * 0.0 + hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
        return nothing, nothing
    if torch.is_grad_enabled() and head.trainable:
        size = max(1, ELEMENTS[hidden.device.type] // len(head.matrix))
        parts = [
            torch.utils.checkpoint.checkpoint(_plainly, head, h, t, temperature, entropy, use_reentrant=False)
            for h, t in zip(hidden.split(size), targets.split(size), strict=True)
        ]
    elif torch.is_grad_enabled() and hidden.requires_grad:
        return _Frozen.apply(hidden, targets, head, temperature, entropy, *(rows for _, rows in head.replaced()))
    else:
        parts = [
            _walk(head, h.detach(), t, temperature, entropy, False)[:2]
            for h, t in zip(hidden.split(ROWS), targets.split(ROWS), strict=True)
        ]
    logprobs, entropies = (torch.cat(several) for several in zip(*parts, strict=True))
    return logprobs, entropies


def row_logprobs(head: Head, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log-probability of `targets (N)` under `hidden (N, D)`: (N), at least fp32, differentiable in `hidden` (and a
    head that trains)."""
    with gathered(head.owner):
        return _rows(head, hidden, targets, temperature, entropy=False)[0]


def row_logprobs_and_entropies(
    head: Head, hidden: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log-probability of `targets (N)` and entropy in nats of each row's distribution: (N) each, differentiable."""
    with gathered(head.owner):
        return _rows(head, hidden, targets, temperature, entropy=True)
