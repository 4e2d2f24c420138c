"""One forward for every stage: hidden states of a packed batch, and from them log-probs, values and scores.

The head is applied only to rows whose target counts, selected before the projection; nothing of size (T, V) is ever held: see `head.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from align.core.head import Head, row_logprobs, row_logprobs_and_entropies
from align.core.pack import Batch


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


def logprobs(hidden: Tensor, head: Head, batch: Batch, temperature: float = 1.0) -> Tensor:
    """(T,): log-probability of `batch.targets` under `hidden (T, D)`, 0 where `batch.loss_mask` is False."""
    values = row_logprobs(head, hidden[batch.rows], batch.targets[batch.rows], temperature)
    return values.new_zeros(len(hidden)).index_add(0, batch.rows, values)


def logprobs_and_entropies(hidden: Tensor, head: Head, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(T,) each: log-probability of `batch.targets`, and entropy in nats of the distribution they come from; 0 where `batch.loss_mask` is
    False."""
    values, entropies = row_logprobs_and_entropies(head, hidden[batch.rows], batch.targets[batch.rows], temperature)
    nothing = values.new_zeros(len(hidden))
    return nothing.index_add(0, batch.rows, values), nothing.index_add(0, batch.rows, entropies)
