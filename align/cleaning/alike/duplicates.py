"""Exact duplicates: rows whose texts stand in an earlier row, blanks aside."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from align.cleaning.fields import Said


def key_of(found: Sequence[Said], said: object) -> bytes:
    """What two rows have in common that hold the same texts in the same parts and say the same of them."""
    texts = [(text.part, " ".join(text.text.split())) for text in found]
    return hashlib.sha256(repr((texts, said)).encode("utf-8", "surrogatepass")).digest()


def parts_of(found: Sequence[Said]) -> dict[str, str]:
    """The texts of each part, one after the other."""
    parts: dict[str, list[str]] = {}
    for text in found:
        parts.setdefault(text.part, []).append(text.text)
    return {part: "\n".join(texts) for part, texts in parts.items()}
