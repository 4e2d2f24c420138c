"""What padding on the right does to a base that packed attention cannot serve: rows must give what each gives alone.

Found out by trying, once per base. Equal is what differs by no more than rounding, whose size is tried too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.data.examples import Example
from align.ground.errors import InputError
from align.packed.encoder_decoder import embeddings
from align.packed.forward import hidden_states, read
from align.packed.pack import pack

TIMES = 3
"""How often what rounding of the embeddings changes; of a dozen families' caches the exact ones stay below 1,
Nemotron-H's is at 5 to 9."""


@torch.no_grad()
def check_padded(model: PreTrainedModel) -> None:
    """Raises: InputError for a base whose rows see the tokens after them, or the rows beside them, far beyond
    rounding."""
    if in_int8(model):
        return
    sequences, prompts = [random_ids(model, n) for n in (12, 5, 9)], (2, 1, 4)
    examples = [
        Example((tuple(s),), (tuple([False] * k + [True] * (len(s) - k)),))
        for s, k in zip(sequences, prompts, strict=True)
    ]
    alone = [_hidden(model, s, k) for s, k in zip(sequences, prompts, strict=True)]
    batch = pack(examples).to(model.device)
    rows = batch.split(hidden_states(model, batch, packed=False))
    together = [row[-len(one) :] for row, one in zip(rows, alone, strict=True)]
    behind = _hidden(model, sequences[0][:7], prompts[0])
    rounding = by_rounding(model, lambda: _hidden(model, sequences[0], prompts[0]))
    if not all(
        same(got, want, 5 * rounding)
        for got, want in zip((behind, *together), (alone[0][: len(behind)], *alone), strict=True)
    ):
        raise InputError(
            f"{type(model).__name__} gives a token another hidden state when other tokens follow or other rows are "
            "beside it: it is not a decoder that reads from left to right. Take one that is."
        )


def in_int8(model: PreTrainedModel) -> bool:
    """Whether linear layers round activations to 8 bits, all but columns in which any row of the batch has a large
    entry (Dettmers et al. 2022, arXiv 2208.07339, section 3.2): rows then change each other's rounding, and comparing
    them says nothing of the model."""
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())


def same(got: Tensor, want: Tensor, rounding: float) -> bool:
    return bool((got - want).abs().float().mean() <= TIMES * rounding * want.abs().float().mean())


def by_rounding(model: PreTrainedModel, compute: Callable[[], Tensor]) -> float:
    """Mean change relative to the mean value of what is computed, when every embedding is moved by its last bit or two,
    or not."""

    def move(_: nn.Module, __: object, out: Tensor) -> Tensor:
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


def random_ids(model: PreTrainedModel, n: int) -> list[int]:
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (n,), generator=torch.Generator().manual_seed(n)).tolist()


def _hidden(model: PreTrainedModel, ids: list[int], prompt: int) -> Tensor:
    hidden: Tensor = read(model, torch.tensor([ids], device=model.device), prompt).last_hidden_state[0]
    return hidden
