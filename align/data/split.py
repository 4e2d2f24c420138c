"""Holding out: a share of the prompts, by their hash, or prompts that are named."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Sequence

from align.data.filed import FiledList
from align.data.records import Labelled, Preference, R, Ranking, Record, Text


def split_by_prompt(records: Sequence[R], fraction: float, limit: int = 1000) -> tuple[list[R], list[R]]:
    """(to train on, held out): about `fraction` of the prompts, at most `limit` of them, chosen by their hash.

    A prompt is what stands before the assistant's first word, or a whole text, so that all records of one prompt, and
    all stages of one dialogue, are on one side. The hash depends on nothing else, so that however rows are ordered a
    prompt held out of one data set is held out of the next one too, with two exceptions: beyond `limit`, and where both
    sides get at least one, as from two prompts on they do unless `fraction` is 0: the one prompt that a small set holds
    out may be trained on in a larger one. `leave_out` has neither.
    """
    openings = [opening(record) for record in records]
    ranked = sorted(set(openings))
    chosen = sum(place(o) < fraction for o in ranked)
    chosen = min(max(chosen, 1), len(ranked) - 1, limit) if fraction > 0 and ranked else 0
    return _apart(records, openings, set(ranked[:chosen]))


def leave_out(records: Sequence[R], held: float | Collection[str]) -> tuple[list[R], list[R]]:
    """(the others, held out): records of the prompts whose place is below a share, or whose `opening` is among those
    given; the same ones of every data set."""
    openings = [opening(record) for record in records]  # of a filed list nothing else is held
    if isinstance(held, float):
        held = {o for o in openings if place(o) < held}
    return _apart(records, openings, set(held))


def _apart(records: Sequence[R], openings: Sequence[str], among: set[str]) -> tuple[list[R], list[R]]:
    kept, left = ([i for i, o in enumerate(openings) if (o in among) == side] for side in (False, True))
    return at(records, kept), at(records, left)


def at(records: Sequence[R], places: Sequence[int]) -> list[R]:
    """The records at some places."""
    if isinstance(records, FiledList) and records.is_filed:
        return records.pick(places)
    return [records[i] for i in places]


def at_most(records: Sequence[R], limit: int = 1000) -> list[R]:
    """The records of `limit` prompts, those of the lowest hash."""
    return leave_out(records, sorted({opening(record) for record in records})[:limit])[1]


def opening(record: Record) -> str:
    """12 hexadecimal digits of the hash of a record's opening, on which alone they depend."""
    if isinstance(record, Text):
        first: object = record.text
    else:
        messages = record.prompt if isinstance(record, Preference | Ranking | Labelled) else record.messages
        first = [(m.role, m.content) for m in itertools.takewhile(lambda m: m.role != "assistant", messages)]
    return hashlib.sha256(json.dumps(first).encode()).hexdigest()[:12]


def place(opening: str) -> float:
    """A number in [0, 1), evenly spread over prompts."""
    return int(opening, 16) / 2**48
