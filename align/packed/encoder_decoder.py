"""Encoder-decoders (T5, BART, T5Gemma): what a sequence means to a model of two parts.

A sequence's tokens before the first that counts are its prompt, which the encoder reads, all of it at once; the decoder
reads its start token and then the answer. So the start token stands at the position of the prompt's last token, whose
target is the answer's first, and each token of the answer at its own. With that, hidden states per position of a packed
row mean what they mean to a decoder, and so do log-probs, losses and samples. transformers' `labels`, shifted to the
right, are the same (`model(input_ids=prompt, labels=answer)`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from align.ground.errors import InputError
from align.packed.pack import Batch


class States(Protocol):
    """What layers give."""

    last_hidden_state: Tensor
    """(B, n, D)."""


def is_encoder_decoder(model: PreTrainedModel) -> bool:
    return bool(model.config.is_encoder_decoder)


def start_id(model: PreTrainedModel) -> int:
    """The token that the decoder begins with, by `generate` and by transformers' labels.

    Raises: InputError where none is named, or the two differ, as with a start that names the language (mBART).
    """
    settings: Any = model.generation_config
    named = (
        settings.decoder_start_token_id,
        getattr(model.config, "decoder_start_token_id", None),
        settings.bos_token_id,
    )
    start = next((found for found in named if isinstance(found, int)), None)
    kind = type(model).__name__
    if start is None:
        raise InputError(
            f"this {kind} names no token that its decoder begins with; add decoder_start_token_id to its config.json."
        )
    shift: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None:
        ends = model.config.get_text_config().eos_token_id
        labels = torch.tensor([[start, ends[0] if isinstance(ends, list) else ends]])
        if (shifted := int(shift(labels)[0, 0])) != start:
            raise InputError(
                f"the decoder of this {kind} begins with token {start} when it is sampled and with token {shifted} "
                "when it is trained on "
                "labels, as where a start names the language; Align trains those that begin with one token."
            )
    return start


def embeddings(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that a forward looks tokens up in: an encoder and a decoder have one each, of the same weights or
    not."""
    parts: list[Any] = [model.get_encoder(), model.get_decoder()] if is_encoder_decoder(model) else [model]
    return list({id(found): found for part in parts if (found := part.get_input_embeddings())}.values())


def padded(model: PreTrainedModel, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """What `read` is given for a packed row, one sequence per row, right-padded; and for each of the T positions its
    index in the decoder's flattened rows. All but the last position of a prompt have the index of its last, whose state
    is the first."""
    flat, counts = batch.input_ids[0], batch.loss_mask.cpu()
    start = flat.new_tensor([start_id(model)])
    prompts: list[Tensor] = []
    answers: list[Tensor] = []
    last: list[int] = []  # of each prompt in its span
    spans = batch.spans
    for span in spans:
        counted = counts[span.cpu()].nonzero()
        last.append(int(counted[0]) if len(counted) else len(span) - 1)
        prompts.append(flat[span[: last[-1] + 1]])
        answers.append(torch.cat([start, flat[span[last[-1] + 1 :]]]))
    length = max(map(len, answers))
    place = torch.empty_like(flat)
    for s in reversed(range(len(spans))):  # a prefix is read from the first of its branches
        place[spans[s]] = s * length + (torch.arange(len(spans[s]), device=flat.device) - last[s]).clamp(min=0)
    ids, mask = _right_padded(prompts)
    decoder_ids, decoder_mask = _right_padded(answers)
    return _given(ids, mask, decoder_ids, decoder_mask), place


def inputs(model: PreTrainedModel, ids: Tensor, prompt: int) -> dict[str, Tensor]:
    """What `read`, or transformers' whole model, is given for texts `ids (B, n)` whose first `prompt` tokens the
    encoder reads."""
    starts = ids.new_full((len(ids), 1), start_id(model))
    asked, said = ids[:, :prompt], torch.cat([starts, ids[:, prompt:]], 1)
    return _given(asked, torch.ones_like(asked), said, torch.ones_like(said))


def read(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    decoder_input_ids: Tensor,
    decoder_attention_mask: Tensor,
) -> States:
    """The decoder's output, without the head's: transformers' T5 has no model of both parts that is called without
    it."""
    encoder: Any = model.get_encoder()
    decoder: Any = model.get_decoder()
    out = decoder(
        input_ids=decoder_input_ids,
        attention_mask=decoder_attention_mask,
        encoder_hidden_states=encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state,
        encoder_attention_mask=attention_mask,
        use_cache=False,
    )
    return cast(States, out)


def _given(ids: Tensor, mask: Tensor, decoder_ids: Tensor, decoder_mask: Tensor) -> dict[str, Tensor]:
    """Without a mask T5Gemma would take every token with the id of its padding for padding."""
    return dict(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, decoder_attention_mask=decoder_mask)


def _right_padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Ids and mask, each (len(rows), longest)."""
    return pad_sequence(list(rows), batch_first=True), pad_sequence(
        [torch.ones_like(row) for row in rows], batch_first=True
    )
