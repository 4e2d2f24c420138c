"""Token ids of a text by its words, each of which the tokenizer reads once.

A byte-level BPE (Radford et al. 2019) cuts a text into words by a pattern and reads each alone, so equal words have
equal ids wherever they stand. The tokenizer does so again for every word of every row; here a word that was read before
is looked up, at a fifth of the time. Only of characters whose classes are known and in the form that the tokenizer
gives them, and only where the tokenizer is one of which all this holds and which reads a sample alike. All else is the
tokenizer's own.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate, chain
from typing import cast

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer
from tokenizers.processors import PostProcessor
from transformers import PreTrainedTokenizerBase

from align.ground.json import Json
from align.rendering.templates.template import Span
from align.rendering.tokens import Tokens
from align.rendering.words.characters import BASIC, in_python, unknown
from align.rendering.words.joints import SPELT, Joints

MOST = 100_000
"""Words that are held; of the many that come once or twice in large data, most come later."""
PIECES = 3
"""Pieces of which a word is no longer held itself: such a one is a clause, and hardly comes again."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of `ByteLevel(use_regex=True)` (tokenizers, src/pre_tokenizers/byte_level.rs)."""
TEXT = "The the don't DON'T 'Re  2026 \r\n\n\t x_1 = 3.14; #$ https://a.b/c?d=e "
OTHERS = " naïve “so” – 你好，世界。 می‌شود ١٢ 🙂👍🏽 'ß 'ı 'İ 'ŉ 'ǰ 'ﬁ 'ﬂ 'ﬆ Straße'ß"
CHARACTERS = 9 * "aBzst019' \t\r\n.,-<|>_" + "".join(map(chr, range(32, 127)))
"""All, and more often some of each class; with a text, what the sample is made of."""


class _Read(dict[str, tuple[int, ...]]):
    """Words and their ids; what is missing is read."""

    def __init__(self, tokenizer: Tokenizer, added: frozenset[int]) -> None:
        super().__init__()
        self.tokenizer, self.model, self.added = tokenizer, cast(BPE, tokenizer.model), added

    @cached_property
    def joints(self) -> Joints | None:
        """Where a word can be cut; None where a part of one may be read otherwise than within it."""
        m = self.model
        if m.ignore_merges or m.fuse_unk or m.continuing_subword_prefix or m.end_of_word_suffix:
            return None
        return Joints(self.tokenizer.get_vocab(with_added_tokens=False))

    def __missing__(self, word: str) -> tuple[int, ...]:
        if not word.isascii() and self.joints:
            pieces = self.joints.pieces(word)
            if len(pieces) >= PIECES:
                return tuple(chain.from_iterable(map(self.__getitem__, pieces)))
        spelt = word.encode().decode("latin-1").translate(SPELT)
        ids = tuple(token.id for token in self.model.tokenize(spelt))
        if not self.added.isdisjoint(ids):
            raise KeyError(word)  # it spells an added token, which stands for itself
        if len(self) < MOST:
            self[word] = ids
        return ids


class _Lengths(dict[int, int]):
    """Bytes of each token, by its id; of added ones too, which are texts."""

    def __init__(self, tokenizer: Tokenizer, added: Mapping[str, int]) -> None:
        super().__init__({id_: len(token.encode()) for token, id_ in added.items()})
        self.spelt = tokenizer.id_to_token

    def __missing__(self, id_: int) -> int:
        self[id_] = found = len(self.spelt(id_) or "")
        return found


class Words:
    """Reads texts for a tokenizer whose words `pattern` cuts; `words_of` says whether it can."""

    def __init__(self, given: PreTrainedTokenizerBase, pattern: re.Pattern[str], classes: set[str]) -> None:
        self.given = given
        tokenizer = given.backend_tokenizer
        added = {token.content: id_ for id_, token in tokenizer.get_added_tokens_decoder().items()}
        longest_first = sorted(added, key=len, reverse=True)
        self.added = added
        self.between = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self.pattern = pattern
        self.unknown = unknown(classes)
        self.composes = tokenizer.normalizer is not None
        self.read = _Read(tokenizer, frozenset(added.values()))
        self.lengths = _Lengths(tokenizer, added)

    def is_known(self, text: str) -> bool:
        """Whether all its characters are, and in the form that the tokenizer gives them."""
        if text.isascii():
            return True
        return not self.unknown.search(text) and (not self.composes or unicodedata.is_normalized("NFC", text))

    def tokens(self, text: str) -> Tokens | None:
        """The text's tokens; None where only the tokenizer can tell."""
        if not self.is_known(text) or not (text.isascii() or self.reads_others):
            return None
        return self._tokens(text)

    @cached_property
    def reads_others(self) -> bool:
        """Whether a sample of other characters than ASCII's is read alike; asked with the first text that has one."""
        return self.reads_alike(_sample(self, TEXT + OTHERS, BASIC))

    def reads_alike(self, sample: str) -> bool:
        """Whether a text is read as the tokenizer reads it."""
        read = self._tokens(sample)
        truth = self.given(sample, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return read is not None and read.ids == truth["input_ids"] and read.offsets == truth["offset_mapping"]

    def _tokens(self, text: str) -> Tokens | None:
        ids: list[int] = []
        try:
            for n, part in enumerate(self.between.split(text)):
                if n % 2:
                    ids.append(self.added[part])
                    continue
                words = self.pattern.findall(part)
                if len("".join(words)) != len(part):
                    return None
                ids += chain.from_iterable(map(self.read.__getitem__, words))
        except KeyError:
            return None
        return _Tokens(ids, text, self)


class _Tokens(Tokens):
    """Tokens that stand one after the other for the bytes of a text."""

    plain = True

    def __init__(self, ids: list[int], text: str, words: Words) -> None:
        super().__init__(ids)
        self.text, self.words = text, words

    @cached_property
    def edges(self) -> list[int]:
        """The byte at which each token begins, and at which the last one ends."""
        return [0, *accumulate(map(self.words.lengths.__getitem__, self.ids))]

    @cached_property
    def bytes(self) -> bytes:
        return self.text.encode()

    @cached_property
    def offsets(self) -> Sequence[Span]:
        signs = np.frombuffer(self.bytes, dtype=np.uint8)
        # how many characters have begun before each byte, and in all
        begun = np.concatenate(([0], np.cumsum((signs & 0xC0) != 0x80)))
        edges = np.array(self.edges)
        return list(zip((begun[edges[:-1] + 1] - 1).tolist(), begun[edges[1:]].tolist(), strict=True))

    def span(self, n: int) -> Span:
        start, end = self.edges[n], self.edges[n + 1]
        if self.text.isascii():
            return start, end
        # a character that a token cuts belongs to both sides
        return len(self.bytes[:start].decode(errors="ignore")), len(self.bytes[:end].decode(errors="replace"))

    def covering(self, start: int, end: int) -> Span:
        first, last = (at if self.text.isascii() else len(self.text[:at].encode()) for at in (start, end))
        return bisect_right(self.edges, first, 1) - 1, bisect_left(self.edges, last, 0, len(self.ids))


def words_of(tokenizer: PreTrainedTokenizerBase) -> Words | None:
    """What reads texts as the tokenizer does; None where it reads otherwise than by bytes and words."""
    backend = tokenizer.backend_tokenizer
    pattern = _pattern(_state(backend.pre_tokenizer))
    if pattern is None or tokenizer.split_special_tokens or not _is_plain(backend):
        return None
    made = in_python(pattern)
    if made is None:
        return None
    words = Words(tokenizer, *made)
    return words if words.reads_alike(_sample(words, TEXT, CHARACTERS)) else None


def _sample(words: Words, text: str, others: str) -> str:
    """A text with characters of all kinds and added tokens behind it, in the form that the tokenizer gives it."""
    draw = random.Random(0)
    between = [token for token in words.added if words.is_known(token)] or [""]
    drawn = [c for c in draw.choices(others, k=2000) if words.is_known(c)]
    parts = (
        draw.choices(CHARACTERS, k=20) + draw.choices(drawn, k=n % 4) + [draw.choice(between)] for n in range(1000)
    )
    return unicodedata.normalize("NFC", text + "".join(chain.from_iterable(parts)))


def _is_plain(tokenizer: Tokenizer) -> bool:
    """Whether nothing but the pattern decides what is a token of a plain text, and each stands for its characters."""
    added = tokenizer.get_added_tokens_decoder().values()
    after = _state(tokenizer.post_processor)
    return (
        _state(tokenizer.normalizer).get("type", "NFC") == "NFC"
        and isinstance(tokenizer.model, BPE)
        and not tokenizer.model.dropout
        and not any(token.single_word or token.lstrip or token.rstrip for token in added)
        and len({token.normalized for token in added}) < 2
        and not any(step.get("trim_offsets") for step in (after, *_steps(after, "processors")))
    )


def _state(step: Normalizer | PreTokenizer | PostProcessor | None) -> Json:
    """What a part of a tokenizer is made of, as in tokenizer.json."""
    return json.loads(step.__getstate__()) if step is not None else {}


def _steps(step: Json, name: str) -> list[Json]:
    """Those of a sequence."""
    return cast("list[Json]", step.get(name, []))


def _pattern(step: Json) -> str | None:
    """The pattern that cuts words, by which bytes follow; None where words are made in another way."""
    *before, last = _steps(step, "pretokenizers") or [step]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    if not before:
        return GPT2 if last["use_regex"] else None
    split = before[-1]
    if (
        len(before) > 1
        or split["type"] != "Split"
        or split["behavior"] != "Isolated"
        or split["invert"]
        or last["use_regex"]
    ):
        return None
    return cast("dict[str, str]", split["pattern"]).get("Regex")
