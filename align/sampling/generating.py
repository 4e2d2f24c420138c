"""Sampling by transformers' `generate`, for bases that packed attention or our cache cannot serve."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel

from align.packed.encoder_decoder import is_encoder_decoder, start_id
from align.packed.head import COLUMNS
from align.sampling.draw import draw, uniforms
from align.sampling.stopping import Ends


class Drawing:
    """Draws for transformers' `generate`, which calls us with the logits of each step, takes the likeliest of what it
    gets back, and asks after each token which rows have ended."""

    def __init__(self, ends: Ends, temperature: float):
        self.ends, self.temperature = ends, temperature
        self.logprobs: list[Tensor] = []  # (R,) of each step

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Logits (R, V) under which the drawn tokens are the likeliest."""
        at = uniforms(len(logits), logits.device) if self.temperature > 0 else None
        tokens, logprobs = draw((z * (1.0 / (self.temperature or 1.0)) for z in logits.split(COLUMNS, 1)), at)
        self.logprobs.append(logprobs)
        return torch.full_like(logits, -torch.inf).scatter_(1, tokens[:, None], 0.0)

    def ended(self, ids: Tensor, _: object, **kwargs: object) -> Tensor:
        """(R,) booleans."""
        self.ends.see(torch.arange(len(ids), device=ids.device), ids[:, -len(self.logprobs) :])
        return self.ends.ended.clone()


@contextmanager
def contiguous_inputs(model: nn.Module) -> Iterator[None]:
    """Give linear layers contiguous inputs inside: of a slice, such as the last positions that `generate` gives the
    head, torch multiplies every row by an expanded copy of a weight that is frozen (a hundred times as long and 4 GB at
    152k words in bf16)."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [
        module.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]) if args else None)
        for module in linears
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def plainly(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], config: GenerationConfig, **more: object
) -> tuple[Tensor, Any]:
    """(prompts' ids, padded, and what `generate` gives for them) by the settings in `config` alone: transformers takes
    what they leave open from the checkpoint's own, such as a shortest length, words that may not come again, or
    beams."""
    whole: Any = model
    config = copy.copy(config)
    side = "left"
    if is_encoder_decoder(model):
        # positions of what an encoder reads are counted from the left
        side, config.decoder_start_token_id = "right", start_id(model)
    ids, mask = pad(prompts, config.pad_token_id, model.device, side)
    shipped, whole.generation_config = whole.generation_config, GenerationConfig()
    try:
        return ids, whole.generate(input_ids=ids, attention_mask=mask, generation_config=config, **more)
    finally:
        whole.generation_config = shipped


def generation_config(
    stop_ids: Sequence[int], pad_id: int, max_new_tokens: int, use_cache: bool = True
) -> GenerationConfig:
    """Greedy, as `Drawing` draws. Built from scratch: checkpoints ship their own top-p and penalties. Every EOS id
    stops."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        repetition_penalty=1.0,
        use_cache=use_cache,
    )


def pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device, side: str) -> tuple[Tensor, Tensor]:
    """ids and mask, each (len(rows), longest)."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad_id, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True, padding_side=side)
    return ids.to(device), mask.to(device)
