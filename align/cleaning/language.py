"""Languages of texts, by py3langid (Lui and Baldwin 2012, ACL demo: "langid.py")."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING

from align.cleaning.library import library
from align.ground.errors import InputError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

ENOUGH = 20
"""Letters from which a language can be told; shorter texts are kept."""
READ = 2000
"""Characters of a text that are looked at."""


@cache
def _identifier() -> LanguageIdentifier:
    langid = library("py3langid.langid", "Telling languages")
    found: LanguageIdentifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    return found


def language_of(text: str) -> str:
    """The code of the likeliest language (ISO 639-1)."""
    code: str = _identifier().classify(text[:READ])[0]
    return code


def check_languages(codes: Collection[str]) -> None:
    """Raises: InputError for a code that is not known."""
    known = _identifier().labels
    unknown = [code for code in codes if code not in known]
    if unknown:
        raise InputError(f"languages: {unknown[0]} is not known. Expected some of {', '.join(sorted(known))}.")


def is_foreign(text: str, codes: Collection[str]) -> str:
    """The language of a text that is in none of these; "" where it is in one, or too short to tell."""
    if sum(map(str.isalpha, text[:READ])) < ENOUGH:
        return ""
    found = language_of(text)
    return "" if found in codes else found
