"""The steps of cleaning, one after the other, over the rows of a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path

from align.cleaning.alike.duplicates import key_of, numbers_of, parts_of
from align.cleaning.alike.minhash import Near
from align.cleaning.fields import ASKED, CALLS, REJECTED, Place, Said, beside, ours, replaced, texts
from align.cleaning.language import check_languages, is_foreign
from align.cleaning.private.scrub import scrubbed
from align.cleaning.quality import Rule, broken, rules_named
from align.cleaning.repair import repaired
from align.cleaning.settings import HIDDEN, Cleaning
from align.cleaning.tally import Cleaned
from align.cleaning.wordlists import Listed
from align.data.filed import OnDisk
from align.data.records import Row
from align.data.shapes.keys import BAD, LABELS, said
from align.ground.progress import Task


class Cleaner:
    """Cleans rows one by one, and then among each other.

    Raises: InputError for settings that cannot be used, before any row is read.
    """

    def __init__(self, settings: Cleaning, columns: Mapping[str, str], word_lists: Sequence[Path]) -> None:
        self.settings, self.columns = settings, columns
        self.unseen = columns
        self.rules: tuple[Rule, ...] | None = ()
        if settings.rules == "auto":
            self.rules = None
        elif settings.rules != "none":
            self.rules = rules_named(settings.rules)
        self.hidden = HIDDEN[settings.scrub] if isinstance(settings.scrub, str) else settings.scrub
        self.listed = Listed(word_lists) if word_lists else None
        if settings.languages:
            check_languages(settings.languages)
        if settings.repair:
            repaired("é")  # are the libraries there?
        if self.hidden:
            scrubbed("+1 202 456 1111, GB82WEST12345698765432", self.hidden)

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
        if self.hidden:
            is_json = text.part == CALLS and now.lstrip()[:1] in ("{", "[")
            now, kinds = scrubbed(now, self.hidden, is_json=is_json)
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

    def all(self, rows: Iterable[Cleaned]) -> Iterator[Cleaned]:
        """The rows by themselves and among each other."""
        return self.among(self.alone(rows))

    def alone(self, rows: Iterable[Cleaned]) -> Iterator[Cleaned]:
        """The rows by themselves."""
        return (row if row.removed else self.one(row) for row in rows)

    def among(self, rows: Iterable[Cleaned]) -> Iterator[Cleaned]:
        """The rows compared with each other: an earlier one stays, a later one that repeats it goes. Rows wait on disk
        until all of them are known."""
        waiting: OnDisk[Cleaned] = OnDisk()
        seen: dict[bytes, str] = {}
        near = None if self.settings.near is None else Near(self.settings.near)
        places: list[str] = []
        for row in rows:
            if not row.removed and self.settings.exact:
                self._exact(row, seen)
            if not row.removed and near:
                self._add(row, near)
                places.append(row.where)
            waiting.append(row)
        with Task(f"comparing {len(places):,} rows"):
            found = near.duplicates() if near else {}
        staying = count()
        for row in waiting:
            match = None if row.removed else found.get(next(staying))
            if match:
                row.removed, row.detail = "near duplicate", f"repeats {places[match[0]]} by {match[1]:.2f}"
            yield row

    def _exact(self, row: Cleaned, seen: dict[bytes, str]) -> None:
        """`seen`: where the first row of each content stands."""
        found = self.texts(row.row)
        if not found:
            return
        key = key_of(found, beside(row.row, found, self.columns))
        if key in seen:
            row.removed, row.detail = "exact duplicate", f"repeats {seen[key]}"
        else:
            seen[key] = row.where

    def _add(self, row: Cleaned, near: Near) -> None:
        found = self.texts(row.row)
        parts = parts_of(found)
        near.add(list(parts.values()), (tuple(parts), beside(row.row, found, self.columns), numbers_of(parts)))
