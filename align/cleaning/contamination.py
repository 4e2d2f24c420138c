"""Evaluation questions in training rows, verbatim or edited.

A question of 8 words or more is in a row where a passage of the row's text is so like it that at most 1 - `fuzzy` of
its words differ, or where the text holds `share` of its runs of `ngram` words (as in Brown et al. 2020, arXiv
2005.14165, appendix C, which takes runs of 8 to 13 words). A shorter one is in a row where a text, a line or a sentence
of it is the same as a whole, words being mistyped at most, and its numbers being the same: what it shares with longer
text is no sign of anything, and another word makes another question of it ("Who wrote Hamlet?", "Who wrote Faust?").

Questions that can be in a row are found by runs of 3 words: k edits change at most 3k of a question's runs (Jokinen and
Ukkonen 1991), so that none is missed.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.cleaning.edits import edits
from align.cleaning.fields import ASKED, Said, texts
from align.cleaning.settings import Decontamination
from align.cleaning.tally import Cleaned, place_of
from align.cleaning.words import plain_words
from align.data.files.tables import read_documents
from align.data.records import Row
from align.data.shapes.columns import absent
from align.data.shapes.keys import PROMPT, SYSTEM
from align.ground.errors import InputError

LONG, LEAST = 8, 3
"""Words from which a question is looked for inside of texts, and at all."""
RUN = 3
LETTERS = 0.9
"""How like in letters a short question must be."""
PIECE = re.compile(r"\n+|(?<=[.?!。！？؟])\s*|:\s+|：")


@dataclass(frozen=True)
class Asked:
    """A question of an evaluation, in words to compare by."""

    where: str
    words: tuple[str, ...]
    runs: frozenset[tuple[str, ...]]
    """Its runs of 3 words."""
    long_runs: frozenset[tuple[str, ...]]
    """Its runs of `ngram` words."""

    @property
    def is_long(self) -> bool:
        return len(self.words) >= LONG


def runs_of(found: Sequence[str], n: int) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(found[i : i + n]) for i in range(len(found) - n + 1))


def asked_of(row: Row, columns: Mapping[str, str]) -> str:
    """What a row of an evaluation asks: all that is asked but system prompts; where nothing is, its text."""
    found = [text for text in texts(row, columns) if text.place[0] not in SYSTEM]
    asked = [text.text for text in found if text.part == ASKED]
    return "\n".join(asked or [text.text for text in found if text.part == "text"])


class Decontaminator:
    """Finds questions of files in rows. Raises: InputError for files that cannot be read, or hold no question."""

    def __init__(self, settings: Decontamination, columns: Mapping[str, str], against: Sequence[Path]) -> None:
        self.settings, self.columns = settings, columns
        self.unseen = columns
        """Columns that no row of an evaluation has."""
        self.questions = [q for path in against for q in self._read(path)]
        self.by_run: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self.by_word: dict[str, list[int]] = defaultdict(list)
        for i, question in enumerate(self.questions):
            for run in question.runs if question.is_long else ():
                self.by_run[run].append(i)
            for word in () if question.is_long else set(question.words):
                self.by_word[word].append(i)

    def _read(self, path: Path) -> Iterator[Asked]:
        asked, seen = 0, set[tuple[str, ...]]()
        for where, parse in read_documents(path).rows:
            row = parse() or {}
            self.unseen = absent(row, self.unseen)
            text = asked_of(row, self.columns)
            words = tuple(plain_words(text))
            asked += bool(text.strip())
            if len(words) >= LEAST and words not in seen:
                seen.add(words)
                yield Asked(place_of(where, path), words, runs_of(words, RUN), runs_of(words, self.settings.ngram))
        if not seen:
            what = f"its {asked:,} questions have fewer than {LEAST} words" if asked else "no row asks anything"
            raise InputError(
                f"--against {path}: {what}. Expected rows with a prompt or a text ({', '.join(PROMPT)} …); "
                "--columns.prompt NAME says what the file calls it."
            )

    def all(self, rows: Iterable[Cleaned]) -> Iterator[Cleaned]:
        """The rows, those that hold a question removed."""
        for row in rows:
            if not row.removed and (match := self.match(texts(row.row, self.columns))):
                row.removed, row.detail = "holds an evaluation question", match
            yield row

    def match(self, found: Sequence[Said]) -> str:
        """Which question texts hold, and how much of it, in words; "" where they hold none."""
        words = [plain_words(text.text) for text in found]
        return self._long([word for some in words for word in some]) or self._short(found)

    def _long(self, text: Sequence[str]) -> str:
        shared = Counter(i for run in runs_of(text, RUN) for i in self.by_run.get(run, ()))
        if not shared:
            return ""
        long_runs = runs_of(text, self.settings.ngram)
        for i, count in shared.most_common():
            question = self.questions[i]
            length = len(question.words)
            allowed = self._allowed(length)
            held = len(question.long_runs & long_runs) / max(len(question.long_runs), 1)
            if held >= self.settings.share and len(question.long_runs) >= self.settings.ngram:
                return f"{held:.0%} of the runs of {question.where}"
            if count >= max(len(question.runs) - RUN * allowed, 1):
                distance = edits(question.words, text, anywhere=True)
                if distance <= allowed:
                    return f"{1 - distance / length:.0%} like {question.where}"
        return ""

    def _allowed(self, length: int) -> int:
        """Words of a question that may differ."""
        return int((1 - self.settings.fuzzy) * length + 1e-9)

    def _short(self, found: Sequence[Said]) -> str:
        for piece in _pieces(found):
            words = plain_words(piece)
            if not LEAST - 1 <= len(words) <= LONG + 1:
                continue
            shared = Counter(i for word in set(words) for i in self.by_word.get(word, ()))
            for i, count in shared.most_common():
                question = self.questions[i]
                if count >= len(set(question.words)) - 2 and (like := self._likeness(question.words, words)):
                    return f"{like:.0%} like {question.where}"
        return ""

    def _likeness(self, question: Sequence[str], words: Sequence[str]) -> float:
        """How like a short question words are, letter by letter; 0 where that is not enough, or numbers differ."""
        if sorted(filter(str.isdigit, question)) != sorted(filter(str.isdigit, words)):
            return 0.0
        one, other = "".join(question), "".join(words)
        like = 1 - edits(one, other) / max(len(one), len(other))
        return like if like >= max(LETTERS, self.settings.fuzzy) else 0.0


def _pieces(found: Sequence[Said]) -> Iterator[str]:
    """Texts, and their lines and sentences, and what stands behind a colon in them."""
    for text in found:
        yield text.text
        pieces = [piece for piece in PIECE.split(text.text) if piece.strip()]
        if len(pieces) > 1:
            yield from pieces
