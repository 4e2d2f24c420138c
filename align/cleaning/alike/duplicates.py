"""Exact duplicates: rows whose texts stand in an earlier row, blanks aside."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from align.cleaning.fields import Said

NUMBER = re.compile(r"(?:[-+*/^=<>×÷]\s?)?\d+(?:[.,:/]\d+)*")
"""A number and the sign before it."""

SEVERAL = ("responses", "completions", "answers")
"""Parts that may be a list of answers."""


def key_of(found: Sequence[Said], said: object) -> bytes:
    """What two rows have in common that hold the same texts in the same parts and say the same of them."""
    texts = [(text.part, " ".join(text.text.split())) for text in found]
    return hashlib.sha256(repr((texts, said)).encode("utf-8", "surrogatepass")).digest()


def parts_of(found: Sequence[Said]) -> dict[str, str]:
    """The texts of each part, one after the other; of several answers each is a part, since their order counts."""
    parts: dict[str, list[str]] = {}
    for text in found:
        part = ".".join(map(str, text.place[:2])) if text.part in SEVERAL else text.part
        parts.setdefault(part, []).append(text.text)
    return {part: "\n".join(texts) for part, texts in parts.items()}


def numbers_of(parts: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """The numbers of what is asked and answered, in their order: where one differs, it is another sum or another day.
    Of documents, whose dates and page numbers make no other text of them, none."""
    return tuple(() if part == "text" else tuple(NUMBER.findall(text)) for part, text in parts.items())
