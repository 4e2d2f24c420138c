"""Can this base be served by packed attention? Found out by trying, once per base, and not by a list
of names.

Short groups packed in one row must give what each sequence gives alone through transformers' own attention, and our
head must give the model's own logits. A base that fails runs through the padded path. Of weights in 16 bits the same is
asked in fp32, layer by layer, where an error stands out from rounding; in 16 bits log-probs of natural text must then
be as near to each other as rounding brings them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from align.ground.errors import AlignError
from align.ground.terminal import say
from align.packed.attention import NAME, native_attention
from align.packed.encoder_decoder import is_encoder_decoder
from align.packed.forward import hidden_states, logits, read
from align.packed.head import Head
from align.packed.layers import limit, unlimit
from align.packed.pack import Batch, Example, pack
from align.packed.rounding import FACTOR, in_fp32, moved_embeddings, natural_ids, rounding_floor
from align.packed.vocabulary import row_logprobs

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""Largest difference relative to the largest hidden value; what rounding alone makes stays an order of magnitude below
in fp32 and fp64."""
NARROW = (torch.bfloat16, torch.float16)
FAILS = (ValueError, TypeError, RuntimeError, AttributeError, IndexError, KeyError, AssertionError)
"""What models raise that are given what they do not know."""


Piece = tuple[int, int, Tensor]
"""Which sequence, its first position, and hidden states (n, D) from there on."""


@dataclass(frozen=True)
class Trial:
    """A model and the few sequences that it is tried on: two answers to one question, and a third that is packed behind
    them."""

    model: PreTrainedModel
    sequences: list[list[int]]
    batch: Batch

    def alone(self) -> list[Tensor]:
        """Hidden states of each sequence through transformers' own attention: (length, D) each."""
        rows = [torch.tensor([s], device=self.model.device) for s in self.sequences]
        with native_attention(self.model):
            return [read(self.model, row).last_hidden_state[0] for row in rows]

    @cached_property
    @torch.no_grad()
    def at_rest(self) -> list[Tensor]:
        """`alone`, computed once for everything that is compared with it."""
        return self.alone()

    @cached_property
    @torch.no_grad()
    def truth(self) -> list[Tensor] | None:
        """`alone` in fp32; None for weights that cannot be widened."""
        try:
            with in_fp32(self.model):
                found = self.alone()
        except FAILS:
            return None
        return found if found[0].dtype == torch.float32 else None

    def packed(self, read: Callable[[PreTrainedModel, Batch], Tensor] = hidden_states) -> list[Piece]:
        pieces = self.batch.split(read(self.model, self.batch))
        return [
            (i, len(s) - len(piece), piece) for i, (s, piece) in enumerate(zip(self.sequences, pieces, strict=True))
        ]

    def logprobs(self, piece: Piece) -> Tensor:
        """Of the tokens that follow a piece's positions."""
        which, first, hidden = piece
        following = self.sequences[which][first + 1 : first + 1 + len(hidden)]
        return row_logprobs(Head(self.model), hidden[: len(following)], torch.tensor(following, device=hidden.device))


def trial(model: PreTrainedModel) -> Trial:
    """On natural text where the base comes with a tokenizer, else on random tokens."""
    vocab = model.config.get_text_config().vocab_size

    def ids(n: int, seed: int) -> list[int]:
        return torch.randint(vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()

    question, first, second = natural_ids(model) or [ids(7, 0), ids(5, 2), ids(3, 3)]
    other = question[:4] + second + first
    sequences = [question + first, question + second, other]
    counts = [
        tuple([False] * k + [True] * (len(s) - k))
        for s, k in zip(sequences, (len(question), len(question), 4), strict=True)
    ]
    examples = [
        Example((tuple(sequences[0]), tuple(sequences[1])), (counts[0], counts[1]), len(question)),
        Example((tuple(other),), (counts[2],), 4),
    ]
    return Trial(model, sequences, pack(examples).to(model.device))


@torch.no_grad()
def probe(tried: Trial) -> tuple[bool, str]:
    """(True, "") where packed groups are exact, else (False, why).

    Raises: AlignError where even the head cannot be reproduced, so that no path would be right.
    """
    model, alone = tried.model, tried.at_rest
    with native_attention(model):
        wanted = logits(model, torch.tensor([tried.sequences[0]], device=model.device))[0]
    if not close(Head(model)(alone[0]), wanted, TOLERANCE[alone[0].dtype]):
        raise AlignError(
            f"{type(model).__name__} changes its logits in a way Align does not reproduce, so log-probabilities would "
            "be wrong. Please report the architecture."
        )
    if is_encoder_decoder(model):
        return False, "its encoder reads whole prompts"
    if model.config._attn_implementation != NAME:
        return False, "packed attention was not selected"
    if why := difference(tried, tried.packed, "packed"):
        return False, why
    if model.device.type == "cuda":
        _prefer_flex(tried)
    _limit_last_layer(model, tried.batch, TOLERANCE[alone[0].dtype])
    return True, ""


def difference(tried: Trial, way: Callable[[], list[Piece]], what: str, exactly: bool = True) -> str:
    """How a way to compute hidden states differs from those of each sequence alone; empty where it does not.

    Weights in 16 bits are tried in fp32 first, unless `exactly` is False or they cannot be widened.
    """
    alone = tried.at_rest
    try:
        if alone[0].dtype not in NARROW:
            return _apart(way(), alone, TOLERANCE[alone[0].dtype], what)
        truth = tried.truth if exactly else None
        if truth is not None:
            with in_fp32(tried.model):
                found = way()
            if why := _apart(found, truth, TOLERANCE[torch.float32], f"{what} in fp32"):
                return why
        return _beyond_rounding(tried, way(), truth, what)
    except FAILS as error:
        return f"{type(error).__name__}: {error}"


def _apart(found: list[Piece], alone: list[Tensor], tolerance: float, what: str) -> str:
    for which, first, got in found:
        want = alone[which][first : first + len(got)]
        if not close(got, want, tolerance):
            return f"{what} and alone differ by {(got - want).abs().max().item():.1e}"
    return ""


def _beyond_rounding(tried: Trial, found: list[Piece], truth: list[Tensor] | None, what: str) -> str:
    """How log-probs differ by more than rounding does: than moved embeddings make, and than sequences alone are from
    fp32."""

    def whole(hidden: list[Tensor]) -> Tensor:
        return torch.cat([tried.logprobs((i, 0, h)) for i, h in enumerate(hidden)])

    alone = tried.at_rest
    at_rest = whole(alone)
    noise = rounding_floor(tried.model, lambda: whole(tried.alone()), at_rest)
    if truth is not None:
        noise = max(noise, float((whole(truth) - at_rest).abs().mean()))
    for which, first, got in found:
        want = alone[which][first : first + len(got)]
        apart = float((tried.logprobs((which, first, got)) - tried.logprobs((which, first, want))).abs().mean())
        if not apart <= FACTOR * noise:
            return f"{what} and alone differ by {apart:.2g} nats per token, where rounding makes {noise:.2g}"
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
    except FAILS:
        equal = False
    if not equal:
        unlimit(model)


def _prefer_flex(tried: Trial) -> None:
    """Take the one-kernel attention where it gives the same values and the same gradients."""
    from align.packed import flex

    model = tried.model
    wanted = _gradient(model, tried.batch)
    with moved_embeddings(model, 0):
        noise = _relative(_gradient(model, tried.batch), wanted)
    allowed = max(TOLERANCE[torch.float32], FACTOR * noise)
    model.config._attn_implementation = flex.NAME
    try:
        why = difference(tried, tried.packed, "packed", exactly=False)
        equal = not why and _relative(_gradient(model, tried.batch), wanted) <= allowed
    except Exception as error:  # whatever a compiler raises
        say(f"FlexAttention is left out ({type(error).__name__}: {str(error).splitlines()[0]})")
        equal = False
    if not equal:
        model.config._attn_implementation = NAME


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def _gradient(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Gradient of the hidden states' squares in the embeddings."""
    with torch.enable_grad():
        embedded = model.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
        out = model.base_model(
            inputs_embeds=embedded, position_ids=batch.position_ids, layout=batch.layout, use_cache=False
        )
        return torch.autograd.grad(out.last_hidden_state.float().square().sum(), embedded)[0]


def close(got: Tensor, want: Tensor, tolerance: float) -> bool:
    scale = want.abs().max().clamp(min=1e-6)
    return bool(((got.to(want.dtype) - want).abs().max() / scale) <= tolerance)
