"""Characters as the engine sees them by whose patterns a tokenizer cuts words (Oniguruma): letters, figures, blanks.

Python's `re` has no classes such as \\p{L}, and its blanks and its Unicode are others. So the members of each class are
asked of the engine itself, and written out. Characters of which that does not settle all are left to the tokenizer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

BASIC = "".join(map(chr, chain(range(0xD800), range(0xE000, 0x10000))))
"""The characters of Unicode's basic plane."""
PICTURES = "".join(map(chr, range(0x1F000, 0x1FC00)))
"""Emoji and their like; known where they are in no class, as nearly all are. Sets of other planes would be slow."""
BLANK = r"\s"
STEP = re.compile(r"\\p\{\w+\}|\\[swd]|\\[SWDPp]|\\.|\[\^?|\]|&&", re.DOTALL)
ESCAPED = re.compile(r"\\[rnt\W]", re.DOTALL)
"""What a backslash makes of a character in both engines alike."""


def in_python(pattern: str) -> tuple[re.Pattern[str], set[str]] | None:
    """(a pattern of Oniguruma's for `re`, the classes that it names); None where that cannot be said alike."""
    out, names = [], set[str]()
    inside = False
    at = 0
    for found in STEP.finditer(pattern):
        step = found[0]
        out.append(pattern[at : found.start()])
        at = found.end()
        if step.startswith("["):
            if inside:
                return None  # a set within a set
            inside = True
        elif step == "]":
            inside = False
        elif step == r"\S" and not inside:
            names.add(BLANK)
            step = f"[^{_set(members(BLANK, BASIC))}]"
        elif step[:2] in (r"\p", r"\s", r"\w", r"\d") and step != r"\p":
            names.add(step)
            written = _set(members(step, BASIC))
            step = written if inside else f"[{written}]" if written else "(?!)"
        elif not ESCAPED.fullmatch(step):
            return None
        out.append(step)
    try:
        made = re.compile("".join([*out, pattern[at:]]))
    except re.error:
        return None
    return None if made.groups else (made, names)


@cache
def members(name: str, among: str) -> list[str]:
    """The characters of a class, such as \\p{L}, in runs that ascend without a gap in `among`."""
    runs = Split(Regex(f"{name}+"), "removed", invert=True).pre_tokenize_str(among)
    return [run for run, _ in runs]


def unknown(names: Iterable[str]) -> re.Pattern[str]:
    """Finds a character that is not known: all that has no meaning in Python's own Unicode, whose form (NFC) may differ
    in a later one; what is a letter of ASCII in another case; and all beyond `BASIC` but `PICTURES` of no class."""
    in_classes = {c for name in names for run in members(name, PICTURES) for c in run}
    assigned = (c for c in BASIC + PICTURES if c not in in_classes and unicodedata.category(c) != "Cn")
    known = (c for c in assigned if c.isascii() or len(c.casefold()) > 1 or not c.casefold().isascii())
    return re.compile(f"[^{_set(_runs(known))}]")


def _runs(characters: Iterable[str]) -> Iterator[str]:
    """The first and the last of characters that follow each other; `characters` ascend."""
    first = last = ""
    for c in characters:
        if last and ord(c) == ord(last) + 1:
            last = c
            continue
        if last:
            yield first + last
        first = last = c
    if last:
        yield first + last


def _set(runs: Iterable[str]) -> str:
    """Runs of characters as they stand in a set of `re`."""
    return "".join(f"\\U{ord(run[0]):08x}-\\U{ord(run[-1]):08x}" for run in runs)
