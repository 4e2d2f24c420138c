"""What padding does to a base that packed attention cannot serve. Found out by trying, once per base.

Padded on the right, rows must give what each gives alone. Padded on the left, as `generate` takes prompts of several
lengths, a recurrent state may have read the padding, and attention in chunks counts it: such a base samples prompts of
one length at a time; and one row at a time where rows beside each other disturb each other, as transformers' RWKV mixes
them after the first token. Where a cache gives other logits than the forward that trains, as Nemotron-H's does, every
token is sampled from a forward over all of its row. Equal is what differs by no more than rounding, whose size is tried
too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from align.data.examples import Example
from align.ground.errors import InputError
from align.ground.terminal import say
from align.packed.encoder_decoder import embeddings
from align.packed.forward import hidden_states, logits, read
from align.packed.pack import pack
from align.sampling.generating import plainly

NEW = 4
TIMES = 3
"""How often what rounding of the embeddings changes; of a dozen families' caches the exact ones stay below 1,
Nemotron-H's is at 5 to 9."""

Together = Literal["all", "equal lengths", "equal lengths without a cache", "none"]
"""Which rows `generate` may take in one batch, and how."""


@torch.no_grad()
def check_padded(model: PreTrainedModel) -> None:
    """Raises: InputError for a base whose rows see the tokens after them, or the rows beside them, far beyond
    rounding."""
    if _in_int8(model):
        return
    sequences, prompts = [_ids(model, n) for n in (12, 5, 9)], (2, 1, 4)
    examples = [
        Example((tuple(s),), (tuple([False] * k + [True] * (len(s) - k)),))
        for s, k in zip(sequences, prompts, strict=True)
    ]
    alone = [_hidden(model, s, k) for s, k in zip(sequences, prompts, strict=True)]
    batch = pack(examples).to(model.device)
    rows = batch.split(hidden_states(model, batch, packed=False))
    together = [row[-len(one) :] for row, one in zip(rows, alone, strict=True)]
    behind = _hidden(model, sequences[0][:7], prompts[0])
    rounding = _rounding(model, lambda: _hidden(model, sequences[0], prompts[0]))
    if not all(
        same(got, want, 5 * rounding)
        for got, want in zip((behind, *together), (alone[0][: len(behind)], *alone), strict=True)
    ):
        raise InputError(
            f"{type(model).__name__} gives a token another hidden state when other tokens follow or other rows are "
            "beside it: it is not a decoder that reads from left to right. Take one that is."
        )


def _in_int8(model: PreTrainedModel) -> bool:
    """Whether linear layers round activations to 8 bits, all but columns in which any row of the batch has a large
    entry (Dettmers et al. 2022, arXiv 2208.07339, section 3.2): rows then change each other's rounding, and comparing
    them says nothing of the model."""
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())


@torch.no_grad()
def sampled_together(model: PreTrainedModel, pad_id: int) -> Together:
    """The rows that `generate` gives in a batch what it gives them alone.

    Raises: InputError where it does not draw from the logits of the forward that trains, with a cache or without.
    """
    if _in_int8(model):
        return "all"
    long, short = _ids(model, 7), _ids(model, 4)
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
            f"the model that trains"
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
        rounding = _rounding(model, lambda: logits(model, alone[0][0], len(prompts[0])))
        wanted = [logits(model, ids, len(p))[0, -NEW - 1 : -1] for p, (ids, _) in zip(prompts, alone, strict=True)]
        exact = all(same(got[0], want, rounding) for (_, got), want in zip(alone, wanted, strict=True))
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        return f"{type(error).__name__}: {error}", [], 0.0
    return ("" if exact else "its logits are not those of the whole text"), alone, rounding


def same(got: Tensor, want: Tensor, rounding: float) -> bool:
    return bool((got - want).abs().float().mean() <= TIMES * rounding * want.abs().float().mean())


def _rounding(model: PreTrainedModel, compute: Callable[[], Tensor]) -> float:
    """Mean change relative to the mean value of what is computed, when every embedding is moved by its last bit or two,
    or not."""

    def move(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        steps = torch.randint(-1, 2, out.shape, generator=torch.Generator().manual_seed(0)).to(out.device, out.dtype)
        return out * (1 + 2 * torch.finfo(out.dtype).eps * steps)

    before = compute()
    hooks = [module.register_forward_hook(move) for module in embeddings(model)]
    try:
        after = compute()
    finally:
        for hook in hooks:
            hook.remove()
    return float((after - before).abs().float().mean() / before.abs().float().mean())


def _ids(model: PreTrainedModel, n: int) -> list[int]:
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (n,), generator=torch.Generator().manual_seed(n)).tolist()


def _hidden(model: PreTrainedModel, ids: list[int], prompt: int) -> Tensor:
    hidden: Tensor = read(model, torch.tensor([ids], device=model.device), prompt).last_hidden_state[0]
    return hidden


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
