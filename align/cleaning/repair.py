"""Text as it was meant: what was read in the wrong encoding, and control characters (ftfy)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from align.cleaning.library import library

if TYPE_CHECKING:
    from ftfy import TextFixerConfig


@cache
def _settings() -> TextFixerConfig:
    """Wide characters, curly quotes, ligatures and the form of accents are as people write them, and stay; so do
    entities, of which code is full."""
    made: TextFixerConfig = library("ftfy", "Repairing text").TextFixerConfig(
        unescape_html=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_line_breaks=True,
        normalization=None,
        explain=False,
    )
    return made


def repaired(text: str) -> str:
    """The text, repaired where it is broken."""
    if text.isascii() and text.isprintable():
        return text
    fixed: str = library("ftfy", "Repairing text").fix_text(text, _settings())
    return fixed
