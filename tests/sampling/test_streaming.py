"""Streaming: what is shown of an answer while it grows is never taken back, and ends as the text that is decoded at
once."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from align.rendering.contract import TextContract
from align.rendering.render import load_renderer
from align.rendering.templates.template import PLAIN_TEMPLATE, Template
from align.sampling.rollout import Sampler
from align.sampling.streaming import Stream, settled
from tests.conftest import ROOT
from tests.models.models import make_roles

MANY_BYTES = ["naïve 🙂 café", "👩‍👩‍👧 family", "שלום עולם", "مرحبا", "日本語のテキスト"]


def contract(inner: Tokenizer, **more: Any) -> TextContract:
    return TextContract(PreTrainedTokenizerFast(tokenizer_object=inner, **more), Template(PLAIN_TEMPLATE, {}), (0,))


def byte_fallback() -> TextContract:
    """As Llama 2 and Gemma decode: pieces with ▁, and a token for each byte."""
    vocabulary = ["</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁It", "▁is", "é", "STOP", "!"]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate(vocabulary)}, [], byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return contract(inner)


def cleaned_up() -> TextContract:
    """As older WordPiece models decode: a space before what follows a word is taken out."""
    vocabulary = ["</s>", "do", "n", "'", "t", "we", "ve", ".", ",", "'m", "ST", "OP", "!", "?"]
    inner = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(vocabulary)}, unk_token="!"))
    return contract(inner, clean_up_tokenization_spaces=True)


def byte_level() -> TextContract:
    """The base that is shipped with the quickstart."""
    return load_renderer(ROOT / "data/tiny-base", None, 512)


def shown(text: TextContract, ids: list[int], stop: list[str]) -> list[str]:
    """The pieces that a stream writes."""
    pieces: list[str] = []
    stream = Stream(text, stop, pieces.append)
    for size in range(1, len(ids) + 1):
        stream(ids[:size])
    assert stream.end() == text.answer(ids, stop)
    return pieces


@pytest.mark.parametrize("made", [byte_level, byte_fallback, cleaned_up])
@pytest.mark.parametrize("stop", [[], ["ST", "STOP!"], ["é!", "n't", "\ufffd\ufffd"]])
def test_what_is_shown_is_what_is_decoded_at_once(made: Callable[[], TextContract], stop: list[str]):
    """Random tokens, so also bytes that are no UTF-8. Negative control: without holding anything back, what is decoded
    of the first tokens is not where the whole text begins."""
    text, draws = made(), random.Random(0)
    size = len(text.tokenizer)
    taken_back = 0
    for _ in range(200):
        ids = [draws.randrange(1, size) for _ in range(draws.randrange(1, 14))]
        whole = text.answer(ids, stop)
        assert "".join(shown(text, ids, stop)) == whole
        taken_back += not all(whole.startswith(text.answer(ids[:i], stop)) for i in range(len(ids)))
    assert taken_back > 0


@pytest.mark.parametrize("said", MANY_BYTES)
def test_characters_of_several_tokens_come_whole(said: str):
    """Also in alphabets from right to left, in the order in which they are said; all but the last tokens' text is shown
    before the end."""
    text = byte_level()
    ids = text.tokenizer(said, add_special_tokens=False)["input_ids"]
    pieces = shown(text, ids, [])
    assert "".join(pieces) == said and "\ufffd" not in "".join(pieces) and len(pieces) > 3
    assert any("\ufffd" in text.tokenizer.decode(ids[:i]) for i in range(len(ids)))  # negative control


def test_no_beginning_of_a_stop_text_is_shown():
    """Until it is known that it does not stop."""
    text = byte_level()
    ids = text.tokenizer("A STOMP, then STOP it", add_special_tokens=False)["input_ids"]
    begun = [settled(text, ids[:i], ["STOP"]) for i in range(len(ids) + 1)]
    assert not any(s.endswith(("S", "ST", "STO")) for s in begun) and begun[-1] == "A STOMP, then "
    assert any(s.endswith(("S", "ST", "STO")) for s in (settled(text, ids[:i], []) for i in range(len(ids))))


@pytest.mark.parametrize("name", ["llama", "bloom"])  # by packed decoding, and by transformers' generate
def test_a_sampler_tells_every_token(name: str):
    """And draws what it draws when nobody listens; who raises ends it."""
    sampler = Sampler(make_roles(name, torch.float32), "policy", [2], 0)
    told: list[list[int]] = []

    def sample(listener: Any) -> list[int]:
        torch.manual_seed(5)
        ((answer,),) = sampler([[5, 6, 7]], n=1, max_new_tokens=12, temperature=1.0, told=listener)
        return answer.ids

    alone, heard = sample(None), sample(lambda ids: told.append(list(ids)))
    assert heard == alone and told == [alone[:i] for i in range(1, len(alone) + 1)]

    def end(ids: Any) -> None:
        if len(ids) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sample(end)
    assert sample(None) == alone
