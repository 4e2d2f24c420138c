"""Tokens of a text: ids, and where in it each stands."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property

from tokenizers import Encoding

from align.rendering.templates.template import Span


class Tokens:
    """Ids of a text. Where each stands stays in the tokenizer's own encoding until it is asked for: as Python objects
    a token's two numbers take thirty times its id."""

    plain = False
    """Whether each stands for its characters as they are, and an added token only for its own name."""

    def __init__(self, ids: list[int], encoding: Encoding | None = None, offsets: Sequence[Span] = ()) -> None:
        self.ids, self.encoding, self._offsets = ids, encoding, offsets

    @cached_property
    def offsets(self) -> Sequence[Span]:
        """Characters that each token stands for."""
        return self.encoding.offsets if self.encoding is not None else self._offsets

    def span(self, n: int) -> Span:
        """The characters of token n."""
        found = self.encoding.token_to_chars(n) if self.encoding is not None else None
        return found if found is not None else self.offsets[n]

    def covering(self, start: int, end: int) -> Span:
        """The first token that shares a character with start … end, and the one after the last."""
        if self.encoding is not None and start < end:
            first, last = self.encoding.char_to_token(start), self.encoding.char_to_token(end - 1)
            if first is not None and last is not None:
                last += 1
                while last < len(self.ids) and self.span(last)[0] < end:  # a character may be several tokens
                    last += 1
                return first, last
        return bisect_right([e for _, e in self.offsets], start), bisect_left([s for s, _ in self.offsets], end)
