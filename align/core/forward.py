"""One forward for every stage: hidden states of a packed batch, and from them log-probs, values and scores.

The head is applied only to rows whose target counts, selected before the projection, in chunks: nothing of size (T, V) is ever held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.core.pack import Batch

CHUNK_ELEMENTS = 1 << 22
"""Logits held at a time (rows x V): 16 MiB in fp32."""


def hidden_states(model: PreTrainedModel, batch: Batch, packed: bool = True) -> Tensor:
    """Last hidden states (T, D) of a packed row; `packed=False` takes the padded path, for bases that fail the probe."""
    decoder = model.base_model
    if packed:
        out = decoder(input_ids=batch.input_ids, position_ids=batch.position_ids, layout=batch.layout, use_cache=False)
        return out.last_hidden_state[0]
    rows, mask, place = padded_rows(batch)
    out = decoder(input_ids=rows, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=False)
    return out.last_hidden_state.flatten(0, 1)[place]


def padded_rows(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The same sequences one per row, right-padded, each with its own copy of the prefix.

    Returns: ids (S, L), attention mask (S, L), and for each of the T packed positions its index in the flattened (S * L) rows.
    """
    flat = batch.input_ids[0]
    device = flat.device
    spans: list[Tensor] = []
    place = torch.empty(len(flat), dtype=torch.long, device=device)
    start = 0
    for prefix, branches in batch.layout.groups:
        head = torch.arange(start, start + prefix, device=device)
        start += prefix
        for n in branches:
            spans.append(torch.cat([head, torch.arange(start, start + n, device=device)]))
            start += n
    length = max(len(s) for s in spans)
    rows = torch.zeros(len(spans), length, dtype=torch.long, device=device)
    mask = torch.zeros(len(spans), length, dtype=torch.long, device=device)
    for s in reversed(range(len(spans))):  # a prefix is read from the first of its branches
        n = len(spans[s])
        rows[s, :n], mask[s, :n] = flat[spans[s]], 1
        place[spans[s]] = torch.arange(s * length, s * length + n, device=device)
    return rows, mask, place


class Head:
    """The language-model head of a transformers model as a function of hidden rows, with its logit scaling and soft-capping.

    Transformers applies those inside `forward`, where they would be lost by calling `lm_head` alone; the probe compares this head
    with the model's own logits.
    """

    def __init__(self, model: PreTrainedModel):
        config = model.config.get_text_config()
        self.module: Any = model.get_output_embeddings()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        scale = getattr(config, "logit_scale", None)  # Cohere multiplies, Granite divides
        self.scale = float(scale) if scale is not None else 1.0 / float(getattr(config, "logits_scaling", 1.0))

    @property
    def trainable(self) -> bool:
        return any(p.requires_grad for p in self.module.parameters())

    def __call__(self, hidden: Tensor) -> Tensor:
        """(N, D) -> logits (N, V) in at least fp32."""
        logits = self.module(hidden.to(self.module.weight.dtype))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def _chunk_logprobs(head: Head, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, ...]:
    logits = head(hidden)
    if temperature != 1.0:
        logits = logits / temperature
    return (-nn.functional.cross_entropy(logits, targets, reduction="none"),)


def _chunk_logprobs_and_entropies(head: Head, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, ...]:
    logp = torch.log_softmax(head(hidden) / temperature, -1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


ChunkFunction = Callable[[Head, Tensor, Tensor, float], tuple[Tensor, ...]]
"""Some numbers (N) of each row of hidden states (N, D), with its target (N)."""


class _FrozenHead(torch.autograd.Function):
    """Numbers of each row with their derivatives by the row computed in the forward, so that backward is a multiply and no logits are kept.

    Each row's gradient is a scalar times that row's own derivative, which makes this exact for any loss, as long as the head is frozen.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, temperature: float, chunk: ChunkFunction) -> tuple[Tensor, ...]:
        values: list[tuple[Tensor, ...]] = []
        slopes: list[tuple[Tensor, ...]] = []
        size = max(1, CHUNK_ELEMENTS // head.module.weight.shape[0])
        for h, t in zip(hidden.split(size), targets.split(size), strict=True):
            with torch.enable_grad():
                leaf = h.detach().requires_grad_()
                found = chunk(head, leaf, t, temperature)
                last = len(found) - 1
                slopes.append(tuple(torch.autograd.grad(x.sum(), leaf, retain_graph=i < last)[0] for i, x in enumerate(found)))
            values.append(tuple(x.detach() for x in found))
        ctx.save_for_backward(*(torch.cat(parts) for parts in zip(*slopes, strict=True)))
        return tuple(torch.cat(parts) for parts in zip(*values, strict=True))

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor, None, None, None, None]:
        parts = [slope * up.to(slope.dtype)[:, None] for slope, up in zip(ctx.saved_tensors, upstream, strict=True)]
        return sum(parts[1:], parts[0]), None, None, None, None


def _by_chunks(chunk: ChunkFunction, numbers: int, head: Head, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, ...]:
    """The `numbers` of `chunk` for all rows, a few rows at a time; differentiable in `hidden` (and a head that trains)."""
    if len(targets) == 0:
        nothing = hidden.sum() * 0.0 + hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
        return (nothing,) * numbers
    if hidden.requires_grad and not head.trainable:
        return _FrozenHead.apply(hidden, targets, head, temperature, chunk)
    size = max(1, CHUNK_ELEMENTS // head.module.weight.shape[0])
    parts = []
    for h, t in zip(hidden.split(size), targets.split(size), strict=True):
        if torch.is_grad_enabled():
            parts.append(torch.utils.checkpoint.checkpoint(chunk, head, h, t, temperature, use_reentrant=False))
        else:
            parts.append(chunk(head, h, t, temperature))
    return tuple(torch.cat(several) for several in zip(*parts, strict=True))


def row_logprobs(head: Head, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log-probability of `targets (N)` under `hidden (N, D)`: (N), at least fp32, differentiable in `hidden` (and a head that trains)."""
    return _by_chunks(_chunk_logprobs, 1, head, hidden, targets, temperature)[0]


def row_logprobs_and_entropies(head: Head, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, ...]:
    """The same with the entropy in nats of each row's distribution, (N) too and differentiable as well."""
    return _by_chunks(_chunk_logprobs_and_entropies, 2, head, hidden, targets, temperature)


def logprobs(hidden: Tensor, head: Head, batch: Batch, temperature: float = 1.0) -> Tensor:
    """(T,): log-probability of `batch.targets` under `hidden (T, D)`, 0 where `batch.loss_mask` is False."""
    rows = batch.loss_mask.nonzero()[:, 0]
    values = row_logprobs(head, hidden[rows], batch.targets[rows], temperature)
    return values.new_zeros(len(hidden)).index_add(0, rows, values)


def logprobs_and_entropies(hidden: Tensor, head: Head, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(T,) each: log-probability of `batch.targets`, and entropy in nats of what they come from; 0 where `batch.loss_mask` is False."""
    rows = batch.loss_mask.nonzero()[:, 0]
    values, entropies = row_logprobs_and_entropies(head, hidden[rows], batch.targets[rows], temperature)
    return values.new_zeros(len(hidden)).index_add(0, rows, values), entropies.new_zeros(len(hidden)).index_add(0, rows, entropies)
