"""One forward for every stage: hidden states of a packed batch, and from them log-probs, values and scores.

The head is applied only to rows whose target counts, selected before the projection, in chunks: nothing of size (T, V) is ever held.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.core.pack import Batch

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits held at a time (rows x V): 16 MiB in fp32 on a CPU. On a GPU 256 MiB, 512 rows at a vocabulary of 128k: with 32 rows a product
would take as long as reading the head's weights, 1 GiB for an 8B model."""


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


def chunk_rows(head: Head, hidden: Tensor) -> int:
    """Rows whose logits are held at a time."""
    return max(1, CHUNK_ELEMENTS[hidden.device.type] // head.module.weight.shape[0])


def _chunk_logprobs(head: Head, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
    logits = head(hidden)
    if temperature != 1.0:
        logits = logits / temperature
    return -nn.functional.cross_entropy(logits, targets, reduction="none")


class _FrozenHeadLogprobs(torch.autograd.Function):
    """log p(target) per row with d logp / d hidden computed in the forward, so that backward is one multiply and no logits are kept.

    Each row's gradient is a scalar times that row's own derivative, which makes this exact for any loss, as long as the head is frozen.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, temperature: float) -> Tensor:
        logprobs, grads = [], []
        size = chunk_rows(head, hidden)
        for h, t in zip(hidden.split(size), targets.split(size), strict=True):
            with torch.enable_grad():
                leaf = h.detach().requires_grad_()
                logp = _chunk_logprobs(head, leaf, t, temperature)
                (grad,) = torch.autograd.grad(logp.sum(), leaf)
            logprobs.append(logp.detach())
            grads.append(grad)
        ctx.save_for_backward(torch.cat(grads))
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * upstream[0].to(grad.dtype)[:, None], None, None, None


def row_logprobs(head: Head, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log-probability of `targets (N)` under `hidden (N, D)`: (N), at least fp32, differentiable in `hidden` (and a head that trains)."""
    if len(targets) == 0:
        return hidden.sum() * 0.0 + hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    if hidden.requires_grad and not head.trainable:
        return _FrozenHeadLogprobs.apply(hidden, targets, head, temperature)
    size = chunk_rows(head, hidden)
    parts = []
    for h, t in zip(hidden.split(size), targets.split(size), strict=True):
        if torch.is_grad_enabled():
            parts.append(torch.utils.checkpoint.checkpoint(_chunk_logprobs, head, h, t, temperature, use_reentrant=False))
        else:
            parts.append(_chunk_logprobs(head, h, t, temperature))
    return torch.cat(parts)


def logprobs(hidden: Tensor, head: Head, batch: Batch, temperature: float = 1.0) -> Tensor:
    """(T,): log-probability of `batch.targets` under `hidden (T, D)`, 0 where `batch.loss_mask` is False."""
    values = row_logprobs(head, hidden[batch.rows], batch.targets[batch.rows], temperature)
    return values.new_zeros(len(hidden)).index_add(0, batch.rows, values)


@torch.no_grad()
def entropies(hidden: Tensor, head: Head, batch: Batch, temperature: float = 1.0) -> Tensor:
    """(T,): entropy in nats of the next-token distribution, 0 where `batch.loss_mask` is False. A measure, not differentiable."""
    out = torch.zeros(len(hidden), device=hidden.device, dtype=torch.promote_types(hidden.dtype, torch.float32))
    size = chunk_rows(head, hidden)
    for r in batch.rows.split(size):
        logp = torch.log_softmax(head(hidden[r]) / temperature, -1)
        out[r] = -(logp.exp() * logp).sum(-1)
    return out
