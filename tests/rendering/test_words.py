"""Words read once give the ids and places that the tokenizer gives for the whole text, or are not read so at all."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from align.data.records import Conversation, Message
from align.rendering import special, words
from align.rendering.render import load_renderer
from align.rendering.words import Words, words_of

BASE = Path(__file__).parents[2] / "data/tiny-base"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The patterns of Qwen2 and of gpt-oss."""
ADDED = ["<|end|>", "<|end|>>", "<tool>"]
TEXTS = ["I'll say: DON'T!  \r\n\n\t 12,345.67 <|end|><|end|>> <tool>x</tool> <|en d|>", "", " ", "a"]


def bpe(before: Any, normalizer: Any = None, **marks: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("t", "h"),
        ("Ġ", "th"),
        ("1", "2"),
        ("a", "a"),
        ("aa", "aa"),
        ("Ġ", "Ġ"),
        ("Ċ", "Ċ"),
        ("D", "O"),
        ("'", "l"),
    ]
    vocabulary = {token: n for n, token in enumerate([*letters, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = before
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, **marks) for token in ADDED])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=ADDED[0])


def by(pattern: str) -> Any:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])


def drawn(count: int) -> list[str]:
    """Texts of plain ASCII: of all its characters, and of such as patterns tell apart, with added tokens between."""
    draw = random.Random(7)
    every = [chr(i) for i in (9, 10, 13, *range(32, 127))]
    few = [*"aBts'lD12 \n\r\t.<|>", *ADDED, "<|", "|>", " the", "12345"]
    return ["".join(draw.choices((every, few)[i % 2], k=80)) for i in range(count)]


@pytest.mark.parametrize("how", ["gpt2", "qwen", "o200k", "tiny"])
def test_ids_and_places_are_those_of_the_whole_text(how: str) -> None:
    ways = {"gpt2": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)), "o200k": lambda: bpe(by(O200K))}
    ways |= {"qwen": lambda: bpe(by(QWEN), normalizers.NFC()), "tiny": lambda: load_renderer(BASE, None, 9).tokenizer}
    tokenizer = ways[how]()
    reads = words_of(tokenizer)
    assert reads is not None
    for text in [*TEXTS, *drawn(400)]:
        tokens, truth = reads.tokens(text), tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert tokens is not None and tokens.ids == truth["input_ids"], text
        assert [tokens.span(n) for n in range(len(tokens.ids))] == tokens.offsets == truth["offset_mapping"]
    spans = truth["offset_mapping"]
    for start, end in ((a, b) for a in range(0, len(text), 7) for b in range(a + 1, len(text) + 1, 5)):
        inside = [n for n, (a, b) in enumerate(spans) if b > start and a < end]
        assert tokens is not None and [*range(*tokens.covering(start, end))] == inside


@pytest.mark.parametrize(
    "tokenizer",
    [
        bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        bpe(by(QWEN), normalizers.Lowercase()),
        bpe(by(QWEN), lstrip=True),
        bpe(by(r"\p{Greek}+|(a)|\s+")),
        bpe(by(r"\s+|a|(b)")),
        bpe(pre_tokenizers.Metaspace()),
    ],
    ids=["prefix space", "lower case", "lstrip", "unknown class", "a group", "metaspace"],
)
def test_other_tokenizers_read_for_themselves(tokenizer: Any) -> None:
    assert words_of(tokenizer) is None


def test_a_pattern_that_is_read_otherwise_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "CLASSES", {**words.CLASSES, "L": "A-Za-gi-z"})
    assert words_of(bpe(by(QWEN))) is None


def test_what_is_no_plain_text_is_left_to_the_tokenizer() -> None:
    reads = words_of(bpe(by(QWEN)))
    assert reads is not None
    assert [reads.tokens(text) for text in ("café", "a\x00b", "a\x1cb", "“so”", "你好")] == [None] * 5
    assert reads.tokens("cafe") is not None


def test_words_that_are_held_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST", 3)
    tokenizer = bpe(by(QWEN))
    reads = words_of(tokenizer)
    text = " ".join(f"word{chr(97 + i)}" for i in range(20))
    assert reads is not None and reads.tokens(text * 2).ids == tokenizer(text * 2)["input_ids"]  # type: ignore[union-attr]
    assert len(reads.read) == 3


def test_many_rows_are_rendered_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with and without other characters, of several turns."""
    texts = ["Hi there", "naïve", "What's\n\n1+1?", "x  y", "  so … ", "2"]
    turns = [[Message("user", a), Message("assistant", b)] for a in texts for b in texts]
    rows = [Conversation((*one, *two), where=f"d:{i}") for i, (one, two) in enumerate(pairwise(turns))]
    few = load_renderer(BASE, None, 200)
    truth = few.conversations(rows)
    monkeypatch.setattr(special, "MANY", 5)
    read: list[str] = []
    tokens = Words.tokens
    monkeypatch.setattr(Words, "tokens", lambda self, text: read.append(text) or tokens(self, text))
    many = load_renderer(BASE, None, 200)
    assert list(many.conversations(rows)) == list(truth) and many.counts == few.counts
    assert len(read) > len(rows)  # a sample, and the rows
