"""Can this base be served by packed attention? Found out by trying, once per base, and not by a list of names.

Two short groups packed in one row must give what each sequence gives alone through transformers' own attention, and our head must give
the model's own logits. A base that fails runs through the padded path.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from align.console import say
from align.core.attention import NAME, native_attention
from align.core.forward import hidden_states
from align.core.head import Head
from align.core.layers import limit, unlimit
from align.core.pack import Batch, Example, pack
from align.errors import AlignError

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""Largest difference relative to the largest hidden value; what rounding alone makes stays an order of magnitude below."""


@torch.no_grad()
def probe(model: PreTrainedModel) -> tuple[bool, str]:
    """(True, "") where packed groups are exact, else (False, why).

    Raises: AlignError where even the head cannot be reproduced, so that no path would be right.
    """
    vocab = model.config.get_text_config().vocab_size
    ids = lambda n, seed: torch.randint(vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()  # noqa: E731
    prompt_a, prompt_b = ids(7, 0), ids(4, 1)
    sequences = [prompt_a + ids(5, 2), prompt_a + ids(3, 3), prompt_b + ids(6, 4)]
    counts = [tuple([False] * 7 + [True] * (len(s) - 7)) for s in sequences]
    examples = [
        Example((tuple(sequences[0]), tuple(sequences[1])), (counts[0], counts[1]), 7),
        Example((tuple(sequences[2]),), (counts[2],), 4),
    ]
    batch = pack(examples).to(model.device)
    with native_attention(model):
        alone = [
            model.base_model(input_ids=torch.tensor([s], device=model.device), use_cache=False).last_hidden_state[0] for s in sequences
        ]
        logits = model(input_ids=torch.tensor([sequences[0]], device=model.device), use_cache=False).logits[0]
    tolerance = TOLERANCE[alone[0].dtype]
    if not close(Head(model)(alone[0]), logits, tolerance):
        raise AlignError(
            f"{type(model).__name__} changes its logits in a way Align does not reproduce, so log-probabilities would be wrong. "
            "Please report the architecture."
        )
    if model.config._attn_implementation != NAME:
        return False, "packed attention was not selected"
    if why := _difference(model, batch, alone, tolerance):
        return False, why
    if model.device.type == "cuda":
        _prefer_flex(model, batch, alone, tolerance)
    _limit_last_layer(model, batch, tolerance)
    return True, ""


def _difference(model: PreTrainedModel, batch: Batch, alone: list[torch.Tensor], tolerance: float) -> str:
    """How the packed row differs from each sequence alone; empty where it does not."""
    try:
        packed = batch.split(hidden_states(model, batch))
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    for got, want in zip(packed, alone, strict=True):
        if not close(got, want[-len(got) :], tolerance):
            return f"packed and alone differ by {(got - want[-len(got) :]).abs().max().item():.1e}"
    return ""


def _limit_last_layer(model: PreTrainedModel, batch: Batch, tolerance: float) -> None:
    """Compute of the last layer no more than is read, where that gives the same."""
    whole = hidden_states(model, batch)[batch.rows]
    try:
        limit(model)
    except ValueError:
        return
    try:
        equal = close(hidden_states(model, batch, batch.rows), whole, tolerance)
    except (ValueError, TypeError, RuntimeError, AttributeError):
        equal = False
    if not equal:
        unlimit(model)


def _prefer_flex(model: PreTrainedModel, batch: Batch, alone: list[torch.Tensor], tolerance: float) -> None:
    """Take the one-kernel attention where it gives the same values and the same gradients."""
    from align.core import flex

    wanted = _gradient(model, batch)
    model.config._attn_implementation = flex.NAME
    try:
        equal = not _difference(model, batch, alone, tolerance) and close(_gradient(model, batch), wanted, tolerance)
    except Exception as error:  # whatever a compiler raises
        say(f"FlexAttention is left out ({type(error).__name__}: {str(error).splitlines()[0]})")
        equal = False
    if not equal:
        model.config._attn_implementation = NAME


def _gradient(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Gradient of the hidden states' squares in the embeddings."""
    with torch.enable_grad():
        embedded = model.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
        out = model.base_model(inputs_embeds=embedded, position_ids=batch.position_ids, layout=batch.layout, use_cache=False)
        return torch.autograd.grad(out.last_hidden_state.float().square().sum(), embedded)[0]


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> bool:
    scale = want.abs().max().clamp(min=1e-6)
    return bool(((got.to(want.dtype) - want).abs().max() / scale) <= tolerance)
