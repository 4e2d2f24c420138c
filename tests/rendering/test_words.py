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
from align.rendering import special
from align.rendering.render import load_renderer
from align.rendering.words import Words, characters, joints, reading, words_of

BASE = Path(__file__).parents[2] / "data/tiny-base"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The patterns of Qwen2 and of gpt-oss."""
SAID = [
    "因为空气分子对蓝光的散射比对红光的散射更强，所以天空是蓝色的。为什么？",
    "می‌شود که این‌ها را ۱۲۳ بار بخوانیم؛ آیا درست است؟",
    "Straße, naïve café – “it’s so”… DON’T İstanbul ılık ŉ ﬁ",
    "👩🏽‍💻 writes 日本語テキスト and 한국어 and हिन्दी 🙂🙂",
]
ADDED = ["<|end|>", "<|end|>>", "<tool>"]
TEXTS = ["I'll say: DON'T!  \r\n\n\t 12,345.67 <|end|><|end|>> <tool>x</tool> <|en d|>", "", " ", "a"]


def bpe(before: Any, normalizer: Any = None, more: Any = (), **marks: Any) -> PreTrainedTokenizerFast:
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
        *more,
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


def written(count: int) -> list[str]:
    """Texts of many scripts, of which some hold characters that are not known, or not in their composed form."""
    draw = random.Random(3)
    blocks = (0x4E00, 0x4E80, 0x600, 0x400, 0xAC00, 0x900, 0xE00, 0x3040, 0xC0, 0x2010, 0x1F600, 0xFB00, 0x1D400)
    few = [*" \n.'s1a", "中", "文", "，", "\u200c", "e\u0301", "ſ", *ADDED]

    def one() -> str:
        block = draw.choice(blocks)
        return "".join(chr(block + draw.randrange(48)) if draw.random() < 0.8 else draw.choice(few) for _ in range(40))

    return [one() for _ in range(count)]


@pytest.mark.parametrize("how", ["gpt2", "qwen", "o200k", "tiny"])
def test_ids_and_places_are_those_of_the_whole_text(how: str) -> None:
    """Of plain ASCII, and of other scripts where they are read here at all."""
    ways = {"gpt2": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)), "o200k": lambda: bpe(by(O200K))}
    ways |= {"qwen": lambda: bpe(by(QWEN), normalizers.NFC()), "tiny": lambda: load_renderer(BASE, None, 9).tokenizer}
    tokenizer = ways[how]()
    reads = words_of(tokenizer)
    assert reads is not None
    others = [text for text in written(120) if reads.is_known(text)]
    assert len(others) > 20
    for text in [*TEXTS, *drawn(200), *SAID, *others]:
        tokens, truth = reads.tokens(text), tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert tokens is not None and tokens.ids == truth["input_ids"], text
        spans = truth["offset_mapping"]
        assert [tokens.span(n) for n in range(len(tokens.ids))] == tokens.offsets == spans
        for start, end in ((a, b) for a in range(0, len(text), 17) for b in range(a + 1, len(text) + 1, 13)):
            inside = [n for n, (a, b) in enumerate(spans) if b > start and a < end]
            assert [*range(*tokens.covering(start, end))] == inside


@pytest.mark.parametrize(
    "tokenizer",
    [
        bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        bpe(by(QWEN), normalizers.Lowercase()),
        bpe(by(QWEN), lstrip=True),
        bpe(by(r"\p{Greek}+|[a-z&&[^b]]+|\s+")),
        bpe(by(r"\h+|\s+")),
        bpe(by(r"\s+|a|(b)")),
        bpe(pre_tokenizers.Metaspace()),
    ],
    ids=["prefix space", "lower case", "lstrip", "a set in a set", "unknown escape", "a group", "metaspace"],
)
def test_other_tokenizers_read_for_themselves(tokenizer: Any) -> None:
    assert words_of(tokenizer) is None


def test_a_pattern_that_is_read_otherwise_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    members = characters.members
    few = {r"\p{L}": lambda run: run.replace("h", "")}
    monkeypatch.setattr(
        characters, "members", lambda name, among: [few.get(name, str)(run)[:7] for run in members(name, among)]
    )
    assert words_of(bpe(by(QWEN))) is None


def test_what_is_not_known_is_left_to_the_tokenizer() -> None:
    """What NFC would change, what a later Unicode may, another plane, and what is an ASCII letter in another case."""
    reads = words_of(bpe(by(QWEN), normalizers.NFC()))
    assert reads is not None
    assert [reads.tokens(text) for text in ("e\u0301", "\u0378", "\U00020000", "'ſ", "\U0001f100")] == [None] * 5
    assert all(reads.tokens(text) for text in ("é", "a\x00b", "a\x1cb", "“so”", "你好", "🙂"))
    as_it_stands = words_of(bpe(by(QWEN)))
    assert as_it_stands is not None and as_it_stands.tokens("e\u0301")


def test_a_clause_is_cut_where_no_token_reaches_across(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of two characters, of a character and a part of the next, and of a part of one and the next. Negative
    control: what a part of a character leads to is not looked at."""
    spelt = "".join(joints.SPELT[byte] for byte in "天空蓝色的光散".encode())
    signs = [spelt[i : i + 3] for i in range(0, len(spelt), 3)]
    sky, blue, light = "".join(signs[:2]), signs[3] + signs[4][0], signs[5][2] + signs[6]
    merges = [(sign[0], sign[1]) for sign in signs[:4]] + [(sign[:2], sign[2]) for sign in signs[:4]]
    merges += [(signs[0], signs[1]), (signs[3], signs[4][0]), (signs[6][0], signs[6][1]), (signs[6][:2], signs[6][2])]
    merges += [(signs[5][2], signs[6])]
    tokenizer = bpe(by(QWEN), None, merges)
    held = tokenizer.get_vocab()
    assert {sky, blue, light} <= held.keys()
    cut = joints.Joints(held).pieces("天空蓝色的光散x天蓝蓝天")
    assert cut == ["天空", "蓝", "色的", "光散", "x", "天", "蓝", "蓝", "天"]
    draw = random.Random(0)
    texts = ["".join(draw.choices("天空蓝色的光散", k=30)) for _ in range(50)]
    truth = tokenizer(texts, add_special_tokens=False)["input_ids"]

    def read() -> list[list[int]]:
        reads = words_of(tokenizer)
        assert reads is not None
        return [tokens.ids for text in texts if (tokens := reads.tokens(text))]

    assert read() == truth
    monkeypatch.setattr(joints, "_is_part", lambda character: False)
    assert read() != truth


def test_words_that_are_held_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST", 3)
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
    assert len(read) == len(rows)
