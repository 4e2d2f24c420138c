"""Word lists: words and phrases of which rows are to hold none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import regex

from align.cleaning.words import UNSPACED_LETTER
from align.ground.errors import InputError


class Listed:
    """Finds the words of several files, whatever their case; within a word only where the script puts no blanks
    between words. Raises: InputError for a file that cannot be read or holds none."""

    def __init__(self, files: Sequence[Path]) -> None:
        words: dict[str, None] = {}
        for file in files:
            try:
                lines = file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"word_lists: {file} cannot be read as UTF-8 ({error}).") from error
            found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
            if not found:
                raise InputError(f"word_lists: {file} holds no word. Expected one a line.")
            words |= dict.fromkeys(found)
        self.pattern = regex.compile("|".join(map(_pattern, words)), regex.IGNORECASE)

    def first(self, text: str) -> str:
        """The first listed word of a text; "" where there is none."""
        found = self.pattern.search(text)
        return found[0].casefold() if found else ""


def _pattern(word: str) -> str:
    escaped = regex.escape(word)
    return escaped if UNSPACED_LETTER.search(word) else rf"(?<!\w){escaped}(?!\w)"
