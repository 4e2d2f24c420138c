"""What stands out in records: how long, how many turns, twice, of which label, in which script, garbled."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from align.data.records import Conversation, Labelled, Messages, Preference, Prompt, Ranking, Record, Stepwise, Text
from align.data.split import openings
from align.ground.terminal import one_line

BLOCKS = " ▁▂▃▄▅▆▇█"
BINS = 40
WESTERN = re.compile(r"[^\x00-\x7f]{2,}")
"""Runs in which UTF-8 that was read as cp1252 would stand."""
LETTERS = 200
"""Letters of each record that are looked at for their script."""


@dataclass(frozen=True)
class Finding:
    """A line about a data set: its name, what was found, in words, and as a number for programs."""

    name: str
    text: str
    value: Any


def texts_of(record: Record) -> list[str]:
    """All that is said in a record."""
    if isinstance(record, Text):
        return [record.text]
    return [m.content for m in _messages(record)]


def _messages(record: Conversation | Preference | Ranking | Labelled | Stepwise | Prompt) -> Messages:
    if isinstance(record, Preference | Ranking):
        return record.prompt + sum(record.answers.values(), ())
    return record.messages


def plot(values: Sequence[int], width: int = BINS) -> str:
    """How often values are how large, from the least to the largest, in blocks."""
    low, high = min(values), max(values)
    bins = [0] * width
    for value in values:
        bins[min(width - 1, (value - low) * width // max(high - low, 1))] += 1
    top = max(bins)
    return "".join(BLOCKS[-(-n * (len(BLOCKS) - 1) // top)] for n in bins)


def sizes(values: Sequence[int], unit: str, limit: int | None = None) -> Finding:
    """Median, 95 % and longest, and how many are beyond a limit."""
    ranked = sorted(values)
    median, most, longest = ranked[len(ranked) // 2], ranked[len(ranked) * 95 // 100], ranked[-1]
    over = "" if limit is None else f"; {sum(n > limit for n in values):,} beyond the context of {limit:,}"
    text = (
        f"median {median:,}, 95 % up to {most:,}, longest {longest:,}{over}\n{ranked[0]:,} {plot(values)} {longest:,}"
    )
    return Finding(unit, text, {"median": median, "p95": most, "max": longest})


def findings(records: Sequence[Record]) -> Iterator[Finding]:
    """What there is to say of records, whatever their kind, and of their kind."""
    yield sizes([sum(map(len, texts_of(record))) for record in records], "characters")
    turns = Counter(sum(m.role == "user" for m in _messages(r)) for r in records if not isinstance(r, Text))
    if turns:
        yield Finding("turns", ", ".join(f"{n:,} with {turn}" for turn, n in sorted(turns.items())[:8]), dict(turns))
    seen = Counter(hash(record) for record in _plain(records))
    twice = sum(n - 1 for n in seen.values())
    yield Finding("duplicates", f"{twice:,} records stand there before, exactly so" if twice else "none", twice)
    prompts = len({*openings(records)})
    said = [m for r in records if not isinstance(r, Text) for m in _messages(r) if m.role == "user"]
    empty = sum(not message.content.strip() for message in said)
    nothing = f"; {empty:,} {'question is' if empty == 1 else 'questions are'} empty" if empty else ""
    yield Finding("prompts", f"{prompts:,} different ones{nothing}", prompts)
    yield from _of_kind(records)
    scripts = Counter(script for record in records for script in _scripts(record))
    share = {script: n / scripts.total() for script, n in scripts.most_common(6)}
    yield Finding("scripts", ", ".join(f"{script} {part:.1%}" for script, part in share.items()) or "no letters", share)
    found = ((record, next(filter(None, map(mojibake, texts_of(record))), "")) for record in records)
    garbled = [(record, run) for record, run in found if run]
    example = f", such as {one_line(garbled[0][1])!r} in {garbled[0][0].where}" if garbled else ""
    yield Finding("garbled", f"{len(garbled):,} records{example}" if garbled else "none", len(garbled))


def _plain(records: Sequence[Record]) -> Iterator[object]:
    """Records without their places."""
    for record in records:
        yield (record.text,) if isinstance(record, Text) else (_messages(record), *_labels(record))


def _labels(record: Record) -> tuple[bool, ...]:
    """Whether an answer, or each of its steps, is good, where that is said."""
    if isinstance(record, Stepwise):
        return record.labels
    return (record.label,) if isinstance(record, Labelled) else ()


def _of_kind(records: Sequence[Record]) -> Iterator[Finding]:
    labels = [record.label for record in records if isinstance(record, Labelled)]
    if labels:
        yield Finding("labels", f"{sum(labels):,} desirable, {len(labels) - sum(labels):,} not", sum(labels))
    steps = [label for record in records if isinstance(record, Stepwise) for label in record.labels]
    if steps:
        yield Finding("steps", f"{len(steps):,}, {sum(steps):,} of them right", len(steps))
    pairs = [record for record in records if isinstance(record, Preference)]
    if pairs:
        longer = sum(_length(pair.chosen) > _length(pair.rejected) for pair in pairs) / len(pairs)
        yield Finding("length", f"the chosen answer is the longer one in {longer:.1%}", longer)


def _length(messages: Messages) -> int:
    return sum(len(m.content) for m in messages)


def _scripts(record: Record) -> Iterator[str]:
    letters = (c for text in texts_of(record) for c in text[:LETTERS] if c.isalpha())
    for letter in letters:
        script = "Latin" if letter < "\x80" else unicodedata.name(letter, "other").split()[0].split("-")[0]
        yield script if script == "CJK" else script.title()


def mojibake(text: str) -> str:
    """The first run of characters that is UTF-8 read as cp1252, or a character that took the place of what could not be
    read; "" where there is none."""
    if text.isascii():
        return ""
    if "\ufffd" in text:
        return "\ufffd"
    for run in WESTERN.finditer(text):
        try:
            run[0].encode("cp1252").decode("utf-8")
        except UnicodeError:
            continue
        return run[0]
    return ""
