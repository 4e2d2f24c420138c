"""One forward for every stage: hidden states of a packed batch, and from them log-probs, values and scores.

The head is applied only to rows whose target counts, selected before the projection; nothing of size (T, V) is ever
held: see `vocabulary.py`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.packed import encoder_decoder
from align.packed.encoder_decoder import States, is_encoder_decoder
from align.packed.head import Head
from align.packed.layers import limited
from align.packed.pack import Batch
from align.packed.vocabulary import row_logprobs, row_logprobs_and_entropies

MOST = 0.9
"""Where more than this share of the rows is read, to leave the others out costs more than it saves."""


def hidden_states(model: PreTrainedModel, batch: Batch, rows: Tensor | None = None, packed: bool = True) -> Tensor:
    """Last hidden states of a packed row: (T, D), or (N, D) of `rows (N)`, the others of which the last layer may leave
    out.

    `packed=False` takes the padded path, for bases that fail the probe.
    """
    if packed:
        return run_packed(model.base_model, batch, rows)
    if is_encoder_decoder(model):
        row, place = encoder_decoder.padded(model, batch)
        out = encoder_decoder.read(model, **row)
    else:
        ids, mask, place = padded_rows(batch)
        out = model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=False
        )
    return out.last_hidden_state.flatten(0, 1)[place if rows is None else place[rows]]


def read(model: PreTrainedModel, ids: Tensor, prompt: int = 1) -> States:
    """What the layers make of texts `ids (B, n)` of one length, by transformers' own forward: its `last_hidden_state`
    is (B, n, D), of an encoder-decoder from the last of the `prompt` tokens on that its encoder reads."""
    if is_encoder_decoder(model):
        return encoder_decoder.read(model, **encoder_decoder.inputs(model, ids, prompt))
    return cast(States, model.base_model(input_ids=ids, use_cache=False))


def logits(model: PreTrainedModel, ids: Tensor, prompt: int = 1) -> Tensor:
    """Transformers' own logits of the same positions, (B, n, V)."""
    whole: Any = model
    given = encoder_decoder.inputs(model, ids, prompt) if is_encoder_decoder(model) else {"input_ids": ids}
    found: Tensor = whole(**given, use_cache=False).logits
    return found


def run_packed(decoder: nn.Module, batch: Batch, rows: Tensor | None = None) -> Tensor:
    """Last hidden states of `rows (N)`, (N, D), or of all, (T, D)."""
    few = rows is not None and limited(decoder) and 0 < len(rows) < MOST * batch.input_ids.shape[1]
    more = {"read": rows} if few else {}
    out = decoder(
        input_ids=batch.input_ids, position_ids=batch.position_ids, layout=batch.layout, use_cache=False, **more
    )
    hidden: Tensor = out.last_hidden_state[0]
    return hidden if rows is None else hidden[rows]


def padded_rows(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The sequences of a batch one per row, right-padded, each with its own copy of the prefix.

    Returns: ids (S, L), attention mask (S, L), and for each of the T packed positions its index in the flattened (S *
    L) rows.
    """
    flat, spans = batch.input_ids[0], batch.spans
    device = flat.device
    place = torch.empty(len(flat), dtype=torch.long, device=device)
    length = max(len(s) for s in spans)
    rows = torch.zeros(len(spans), length, dtype=torch.long, device=device)
    mask = torch.zeros(len(spans), length, dtype=torch.long, device=device)
    for s in reversed(range(len(spans))):  # a prefix is read from the first of its branches
        n = len(spans[s])
        rows[s, :n], mask[s, :n] = flat[spans[s]], 1
        place[spans[s]] = torch.arange(s * length, s * length + n, device=device)
    return rows, mask, place


def placed(values: Tensor, batch: Batch) -> Tensor:
    """`values (N)` of the rows whose target counts, at their places: (T,), 0 elsewhere."""
    return values.new_zeros(len(batch.loss_mask)).index_add(0, batch.rows, values)


def logprobs(hidden: Tensor, head: Head, batch: Batch, temperature: float = 1.0) -> Tensor:
    """(T,): log-probability of `batch.targets` under `hidden (N, D)` of `batch.rows`, 0 where `batch.loss_mask` is
    False."""
    return placed(row_logprobs(head, hidden, batch.targets[batch.rows], temperature), batch)


def logprobs_and_entropies(hidden: Tensor, head: Head, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(T,) each: log-probability of `batch.targets`, and entropy in nats of the distribution they come from; `hidden
    (N, D)` as above."""
    values, entropies = row_logprobs_and_entropies(head, hidden, batch.targets[batch.rows], temperature)
    return placed(values, batch), placed(entropies, batch)
