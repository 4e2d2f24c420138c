"""Token ids of a text by its words, each of which the tokenizer reads once.

A byte-level BPE (Radford et al. 2019) cuts a text into words by a pattern and reads each alone, so equal words have
equal ids wherever they stand. The tokenizer does so again for every word of every row; here a word that was read before
is looked up, at a fifth of the time. Only of plain ASCII, whose classes are known and where a byte is a character, and
only where the tokenizer is one of which all this holds and which reads a sample alike. All else is the tokenizer's own.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer
from tokenizers.processors import PostProcessor
from transformers import PreTrainedTokenizerBase

from align.ground.json import Json
from align.rendering.templates.template import Span
from align.rendering.tokens import Tokens

MOST = 100_000
"""Words that are held; of the many that come once or twice in large data, most come later."""
OTHER = re.compile(r"[^\t\n\r -~]")
"""What is no plain ASCII."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of `ByteLevel(use_regex=True)` (tokenizers, src/pre_tokenizers/byte_level.rs)."""
CLASSES = {
    **{"L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "N": "0-9", "Nd": "0-9"},
    **dict.fromkeys(("Lt", "Lm", "Lo", "M", "Mn", "Mc", "Nl", "No", "Han"), ""),
}
"""What characters of ASCII are in a class of Unicode."""
TEXT = "The the don't DON'T 'Re  2026 \r\n\n\t x_1 = 3.14; #$ https://a.b/c?d=e "
CHARACTERS = 9 * "aBzst019' \t\r\n.,-<|>_" + "".join(map(chr, range(32, 127)))
"""All, and more often some of each class; with a text, what the sample is made of."""


class _Read(dict[str, tuple[int, ...]]):
    """Words and their ids; what is missing is read."""

    def __init__(self, tokenizer: Tokenizer, added: frozenset[int]) -> None:
        super().__init__()
        self.model, self.added = tokenizer.model, added
        self.bytes = ByteLevel(add_prefix_space=False, use_regex=False)

    def __missing__(self, word: str) -> tuple[int, ...]:
        spelt = "".join(part for part, _ in self.bytes.pre_tokenize_str(word))
        ids = tuple(token.id for token in self.model.tokenize(spelt))
        if not self.added.isdisjoint(ids):
            raise KeyError(word)  # it spells an added token, which stands for itself
        if len(self) < MOST:
            self[word] = ids
        return ids


class Words:
    """Reads plain ASCII for a tokenizer; `words_of` says whether it can."""

    def __init__(self, tokenizer: Tokenizer, pattern: str) -> None:
        added = {token.content: id_ for id_, token in tokenizer.get_added_tokens_decoder().items()}
        longest_first = sorted(added, key=len, reverse=True)
        self.added = added
        self.between = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self.pattern = re.compile(_in_ascii(pattern), re.ASCII)
        self.read = _Read(tokenizer, frozenset(added.values()))
        self.tokenizer = tokenizer

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Characters of each token of plain ASCII, by its id."""
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        out = np.zeros(max(vocabulary.values()) + 1, dtype=np.int32)
        out[list(vocabulary.values())] = [len(token) for token in vocabulary]
        return out

    def tokens(self, text: str) -> Tokens | None:
        """The text's tokens; None where only the tokenizer can tell."""
        if OTHER.search(text):
            return None
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
        return _Tokens(ids, self)


class _Tokens(Tokens):
    """Tokens of plain ASCII, which stand one after the other."""

    plain = True

    def __init__(self, ids: list[int], words: Words) -> None:
        super().__init__(ids)
        self.words = words

    @cached_property
    def edges(self) -> NDArray[np.int64]:
        """Where each token begins, and the last one ends."""
        return np.concatenate(([0], np.cumsum(self.words.lengths[self.ids])))

    @cached_property
    def offsets(self) -> Sequence[Span]:
        edges = self.edges.tolist()
        return list(pairwise(edges))

    def span(self, n: int) -> Span:
        return int(self.edges[n]), int(self.edges[n + 1])

    def covering(self, start: int, end: int) -> Span:
        return int(self.edges[1:].searchsorted(start, "right")), int(self.edges[:-1].searchsorted(end, "left"))


def words_of(tokenizer: PreTrainedTokenizerBase) -> Words | None:
    """What reads plain ASCII as the tokenizer does; None where it reads otherwise than by bytes and words."""
    backend = tokenizer.backend_tokenizer
    pattern = _pattern(_state(backend.pre_tokenizer))
    if pattern is None or tokenizer.split_special_tokens or not _is_plain(backend):
        return None
    try:
        words = Words(backend, pattern)
    except re.error:
        return None
    if words.pattern.groups:
        return None
    draw = random.Random(0)
    between = [token for token in words.added if not OTHER.search(token)] or [""]
    drawn = ("".join(draw.choices(CHARACTERS, k=20)) + draw.choice(between) for _ in range(1000))
    sample = TEXT + "".join(drawn)
    read = words.tokens(sample)
    given = tokenizer(sample, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    alike = read is not None and read.ids == given["input_ids"] and read.offsets == given["offset_mapping"]
    return words if alike else None


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


def _in_ascii(pattern: str) -> str:
    """A pattern with its Unicode classes as sets of ASCII; one that is not known stays, and does not compile."""
    inside = False

    def said(found: re.Match[str]) -> str:
        nonlocal inside
        inside = found[0] == "[" or (inside and found[0] != "]")
        characters = CLASSES.get(found[1] or "")
        if characters is None:
            return found[0]
        return characters if inside else f"[{characters}]" if characters else "(?!)"

    return re.sub(r"\\p\{(\w+)\}|\\.|\[|\]", said, pattern)
