"""Words of a text in any script: where none are written apart, as in Chinese, Japanese or Thai, each letter is one."""

from __future__ import annotations

import re
import unicodedata

import regex

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that put no blanks between words."""
WORD = regex.compile(rf"(?V1)[{UNSPACED}]\p{{M}}*|[[\w]--[{UNSPACED}]]+")
ASCII_WORD = re.compile(r"[a-zA-Z0-9_]+")
LETTER = regex.compile(r"\p{L}")
UNSPACED_LETTER = regex.compile(rf"[{UNSPACED}]")


def words(text: str) -> list[str]:
    """The words of a text as they stand, without what stands between them."""
    found: list[str] = ASCII_WORD.findall(text) if text.isascii() else WORD.findall(text)
    return found


def plain_words(text: str) -> list[str]:
    """Words to compare texts by: case, width and other forms of compatibility (NFKC) make no difference."""
    if text.isascii():
        return ASCII_WORD.findall(text.lower())
    return words(unicodedata.normalize("NFKC", text).casefold())


def is_unspaced(text: str) -> bool:
    """Whether most letters of a text are of scripts that put no blanks between words."""
    return not text.isascii() and 2 * len(UNSPACED_LETTER.findall(text)) > len(LETTER.findall(text))
