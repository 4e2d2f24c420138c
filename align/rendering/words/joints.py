"""Joints of a word: places which no token reaches across.

BPE joins two neighbours only where a token holds both. So where no token holds the characters on both sides of a place,
nothing is joined across it, and both sides have the ids that they have alone. Chinese writes a clause as one word:
hardly one of these comes twice, and its parts of two or three characters do all the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import add

from transformers.convert_slow_tokenizer import bytes_to_unicode

SPELT: dict[int, str] = bytes_to_unicode()
"""How a byte-level BPE spells each byte (Radford et al. 2019, encoder.py)."""
BYTES = {ord(sign): byte for byte, sign in SPELT.items()}
BLANKS = SPELT[ord(" ")] + SPELT[ord("\n")]
NO_BYTE = 0xFF
"""A byte that no UTF-8 has, between two tokens."""
PARTS = ("\udc80", "\udcff")
"""How Python reads a byte that is only a part of a character (`surrogateescape`)."""
LEADS = "\udcc0"
"""The first of those that begin a character."""


class Joints:
    """Where words can be cut, by what the vocabulary holds."""

    def __init__(self, vocabulary: Iterable[str]) -> None:
        spelt = SPELT[NO_BYTE].join(token for token in vocabulary if not token.strip(BLANKS).isascii())
        text = spelt.translate(BYTES).encode("latin-1").decode("utf-8", "surrogateescape")
        self.inside: set[str] = set()
        """Two characters that a token holds, one after the other; of ASCII not all."""
        self.goes_on: set[str] = set()
        """Characters that a token holds with a part of the next one."""
        self.went_before: set[str] = set()
        """Characters that a token holds with a part of the one before."""
        self.none = False
        """Whether a token holds parts of two characters, which may be any."""
        for pair in set(map(add, text, text[1:])):
            self._note(*pair)

    def _note(self, one: str, other: str) -> None:
        if chr(0xDC00 + NO_BYTE) in (one, other):
            return
        if _is_part(one) and _is_part(other):
            self.none |= other >= LEADS
        elif _is_part(other):
            self.goes_on.add(one)
        elif _is_part(one):
            self.went_before.add(other)
        else:
            self.inside.add(one + other)

    def pieces(self, word: str) -> list[str]:
        """The word cut at its joints; between two characters of ASCII there is none."""
        pairs = enumerate(map(add, word, word[1:]), 1)
        cuts = [at for at, pair in pairs if pair not in self.inside and self._is_joint(pair)]
        return [word[a:b] for a, b in zip([0, *cuts], [*cuts, len(word)], strict=True)]

    def _is_joint(self, pair: str) -> bool:
        return not (self.none or pair.isascii() or pair[0] in self.goes_on or pair[1] in self.went_before)


def _is_part(character: str) -> bool:
    return PARTS[0] <= character <= PARTS[1]
