"""Which rows transformers' `generate` may take in one batch. Found out by trying, once per base.

Padded on the left, as `generate` takes prompts of several lengths, a recurrent state may have read the padding, and
attention in chunks counts it: such a base samples prompts of one length at a time; and one row at a time where rows
beside each other disturb each other, as transformers' RWKV mixes them after the first token. Where a cache gives other
logits than the forward that trains, as Nemotron-H's does, every token is sampled from a forward over all of its row.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from align.ground.errors import InputError
from align.ground.terminal import say
from align.packed.forward import logits
from align.packed.padding import by_rounding, in_int8, random_ids, same
from align.sampling.generating import plainly

NEW = 4
"""Tokens that are sampled to find out."""

Together = Literal["all", "equal lengths", "equal lengths without a cache", "none"]
"""Which rows `generate` may take in one batch, and how."""


@torch.no_grad()
def rows_together(model: PreTrainedModel, pad_id: int) -> Together:
    """The rows that `generate` gives in a batch what it gives them alone.

    Raises: InputError where it does not draw from the logits of the forward that trains, with a cache or without.
    """
    if in_int8(model):
        return "all"
    long, short = random_ids(model, 7), random_ids(model, 4)
    why, alone, rounding = _drawn(model, [long, short], pad_id, use_cache=True)
    if why:
        why, _, _ = _drawn(model, [long, short], pad_id, use_cache=False)
        if why:
            raise InputError(
                f"{type(model).__name__} cannot be sampled from by transformers' generate ({why}). Stages that do not "
                "sample (sft, dpo, reward with centre_samples 0) work."
            )
        say(
            f"{type(model).__name__} samples without a cache, which gives other logits than its forward: slow, but "
            "the model that trains"
        )
        return "equal lengths without a cache"

    def equal(prompts: list[list[int]], others: list[tuple[Tensor, Tensor]]) -> bool:
        return all(
            same(got, logits[0], rounding)
            for got, (_, logits) in zip(_generated(model, prompts, pad_id)[1], others, strict=True)
        )

    if not equal([short, short], [alone[1], alone[1]]):
        return "none"
    chunks = getattr(model.config.get_text_config(), "attention_chunk_size", None)
    return "all" if not chunks and equal([long, short], alone) else "equal lengths"


def _drawn(
    model: PreTrainedModel, prompts: list[list[int]], pad_id: int, use_cache: bool
) -> tuple[str, list[tuple[Tensor, Tensor]], float]:
    """(why what `generate` draws from is not the forward that trains, or nothing; ids and logits of each prompt alone;
    rounding)."""
    try:
        alone = [_generated(model, [p], pad_id, use_cache) for p in prompts]
        rounding = by_rounding(model, lambda: logits(model, alone[0][0], len(prompts[0])))
        wanted = [logits(model, ids, len(p))[0, -NEW - 1 : -1] for p, (ids, _) in zip(prompts, alone, strict=True)]
        exact = all(same(got[0], want, rounding) for (_, got), want in zip(alone, wanted, strict=True))
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        return f"{type(error).__name__}: {error}", [], 0.0
    return ("" if exact else "its logits are not those of the whole text"), alone, rounding


def _generated(
    model: PreTrainedModel, prompts: list[list[int]], pad_id: int, use_cache: bool = True
) -> tuple[Tensor, Tensor]:
    """Ids (N, P + NEW) and logits (N, NEW, V)."""
    config = GenerationConfig(
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=pad_id,
        output_logits=True,
        return_dict_in_generate=True,
        use_cache=use_cache,
    )
    ids, out = plainly(model, prompts, config)
    return torch.cat([ids, out.sequences[:, -NEW:]], 1), torch.stack(out.logits, 1)
