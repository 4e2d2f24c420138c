"""An answer's text while it grows: what is shown of it never has to be taken back.

Text is held back for as long as a later token may change it: a character whose bytes come in several tokens, spaces
that a tokenizer cleans up, and what may be the beginning of a text that stops the answer. What has been shown when the
answer ends is, with what then follows, what `Renderer.answer` gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from align.rendering.contract import TextContract

BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A token for one byte of a vocabulary with byte fallback. A run of them is decoded as a whole, and where it turns out
to be no UTF-8, none of its characters stays."""
CLEANED = 4
"""Characters of the longest ending that clean-up joins to the word before it, as in "do n't", its space included."""


def settled(text: TextContract, ids: Sequence[int], stop: Sequence[str]) -> str:
    """The beginning of the text of an unfinished answer that no later token changes."""
    tokens = list(text.tokenizer.convert_ids_to_tokens(list(ids)))
    while tokens and BYTE.fullmatch(tokens[-1] or ""):  # an id beyond the vocabulary has no token
        tokens.pop()
    found = text.answer(ids[: len(tokens)], stop).rstrip("\ufffd")
    space = found.rfind(" ")
    if text.tokenizer.clean_up_tokenization_spaces and space >= 0 and len(found) - space <= CLEANED:
        found = found[:space]
    begun = max((size for s in stop for size in range(1, len(s)) if found.endswith(s[:size])), default=0)
    return found[: len(found) - begun]


class Stream:
    """Writes an answer as it grows; called with its ids so far."""

    def __init__(self, text: TextContract, stop: Sequence[str], write: Callable[[str], object]):
        self.text, self.stop, self.write = text, stop, write
        self.ids: list[int] = []
        self.shown = ""

    def __call__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self._show(settled(self.text, ids, self.stop))

    def end(self) -> str:
        """The whole text, what was held back written as well."""
        whole = self.text.answer(self.ids, self.stop)
        if not whole.startswith(self.shown):  # by a decoder of another kind
            self.write("\n")
            self.shown = ""
        self._show(whole)
        return whole

    def _show(self, found: str) -> None:
        if len(found) > len(self.shown):
            self.write(found[len(self.shown) :])
            self.shown = found
