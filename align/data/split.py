"""Holding out: a share of the prompts, by their hash."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any, TypeVar

from align.data.records import Conversation, Preference, Prompt, Text

R = TypeVar("R", bound=Conversation | Preference | Prompt | Text)


def split_by_prompt(records: Sequence[R], fraction: float, limit: int = 1000) -> tuple[list[R], list[R]]:
    """(to train on, held out): about `fraction` of the prompts, at most `limit` of them, chosen by their hash.

    A prompt is what stands before the assistant's first word, or a whole text, so that all records of one prompt, and all stages of one
    dialogue, are on one side. The hash depends on nothing else, so a prompt held out of one data set is held out of the next one too, below
    `limit`, however the rows are ordered. From two prompts on, both sides get at least one, unless `fraction` is 0.
    """
    hashes = [_opening_hash(record) for record in records]
    ranked = sorted(set(hashes))
    chosen = sum(h < fraction for h in ranked)
    chosen = min(max(chosen, 1), len(ranked) - 1, limit) if fraction > 0 and ranked else 0
    held_out = set(ranked[:chosen])
    train = [record for record, h in zip(records, hashes, strict=True) if h not in held_out]
    return train, [record for record, h in zip(records, hashes, strict=True) if h in held_out]


def _opening_hash(record: Conversation | Preference | Prompt | Text) -> float:
    """A number in [0, 1) that depends on the record's opening alone."""
    if isinstance(record, Text):
        opening: Any = record.text
    else:
        messages = record.prompt if isinstance(record, Preference) else record.messages
        opening = [(m.role, m.content) for m in itertools.takewhile(lambda m: m.role != "assistant", messages)]
    return int.from_bytes(hashlib.sha256(json.dumps(opening).encode()).digest()[:6]) / 2**48
