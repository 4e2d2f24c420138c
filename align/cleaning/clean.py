"""The steps of cleaning, one after the other, over the rows of a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from align.cleaning.alike.duplicates import key_of, numbers_of, parts_of
from align.cleaning.alike.minhash import Near
from align.cleaning.fields import ASKED, CALLS, REJECTED, Place, Said, beside, ours, replaced, texts
from align.cleaning.language import check_languages, is_foreign
from align.cleaning.private.scrub import scrubbed
from align.cleaning.quality import Rule, broken, rules_named
from align.cleaning.repair import repaired
from align.cleaning.settings import Cleaning
from align.cleaning.tally import Cleaned
from align.cleaning.wordlists import Listed
from align.data.records import Row
from align.data.shapes.keys import BAD, LABELS, said


class Cleaner:
    """Cleans rows one by one, and then among each other.

    Raises: InputError for settings that cannot be used, before any row is read.
    """

    def __init__(self, settings: Cleaning, columns: Mapping[str, str]) -> None:
        self.settings, self.columns = settings, columns
        self.unseen = columns
        self.rules = None if settings.rules == ("auto",) else rules_named(settings.rules)
        self.listed = Listed(settings.word_lists) if settings.word_lists else None
        if settings.languages:
            check_languages(settings.languages)
        if settings.repair:
            repaired("é")  # are the libraries there?
        if settings.scrub:
            scrubbed("+1 202 456 1111, GB82WEST12345698765432", settings.scrub)

    @cached_property
    def profiles(self) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
        return rules_named(["documents"]), rules_named(["answers"])

    def rules_for(self, part: str) -> tuple[Rule, ...]:
        if self.rules is not None:
            return self.rules
        documents, answers = self.profiles
        return documents if part == "text" else answers

    def texts(self, row: Row) -> list[Said]:
        return texts(row, self.columns)

    def one(self, cleaned: Cleaned) -> Cleaned:
        """A row repaired, scrubbed and judged by itself."""
        new: dict[Place, str] = {}
        found: list[Said] = []
        for text in self.texts(cleaned.row):
            changed, reasons = self._edited(text)
            cleaned.changes += [reason for reason in reasons if reason not in cleaned.changes]
            found.append(text._replace(text=changed))
            if changed != text.text:
                new[text.place] = changed
        cleaned.row = replaced(cleaned.row, new)
        cleaned.removed = self._why_removed(cleaned.row, found)
        return cleaned

    def _edited(self, text: Said) -> tuple[str, list[str]]:
        """(the text repaired and scrubbed, what was done to it)."""
        reasons = []
        now = text.text
        if self.settings.repair and text.part != CALLS and (fixed := repaired(now)) != now:
            now, reasons = fixed, ["text repaired"]
        if self.settings.scrub:
            now, kinds = scrubbed(now, self.settings.scrub)
            reasons += [f"{kind} put out of sight" for kind in kinds]
        return now, reasons

    def _why_removed(self, row: Row, found: Sequence[Said]) -> str:
        judged = [text for text in found if text.part not in (ASKED, CALLS, *REJECTED) and text.text.strip()]
        if any(said(value) in BAD | {"0", "0.0"} for key, value in ours(row, self.columns) if key in LABELS):
            judged = []
        for text in judged:
            if rule := broken(text.text, self.rules_for(text.part)):
                return f"rule {rule}"
        for text in judged:
            if self.settings.languages and (code := is_foreign(text.text, self.settings.languages)):
                return f"language {code}"
        if self.listed and (word := next(filter(None, (self.listed.first(text.text) for text in found)), "")):
            return f"word list ({word})"
        return ""

    def all(self, rows: Iterable[Cleaned]) -> list[Cleaned]:
        """The rows by themselves and among each other: an earlier one stays, a later one that repeats it goes."""
        cleaned = [row if row.removed else self.one(row) for row in rows]
        if self.settings.exact:
            self._exact(cleaned)
        if self.settings.near is not None:
            self._near(cleaned, self.settings.near)
        return cleaned

    def _exact(self, rows: Sequence[Cleaned]) -> None:
        seen: dict[bytes, Cleaned] = {}
        for row in _staying(rows):
            found = self.texts(row.row)
            if not found:
                continue
            first = seen.setdefault(key_of(found, beside(row.row, found, self.columns)), row)
            if first is not row:
                row.removed, row.detail = "exact duplicate", f"repeats {first.where}"

    def _near(self, rows: Sequence[Cleaned], threshold: float) -> None:
        near = Near(threshold)
        looked = list(_staying(rows))
        for row in looked:
            found = self.texts(row.row)
            parts = parts_of(found)
            group = (tuple(parts), beside(row.row, found, self.columns), numbers_of(parts))
            near.add(list(parts.values()), group)
        for number, (first, index) in near.duplicates().items():
            looked[number].removed = "near duplicate"
            looked[number].detail = f"repeats {looked[first].where} by {index:.2f}"


def _staying(rows: Sequence[Cleaned]) -> Iterator[Cleaned]:
    return (row for row in rows if not row.removed)
