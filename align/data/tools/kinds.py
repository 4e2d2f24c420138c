"""Kinds of records that a file may hold, and which of them it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from align.data.dialects.table import DIALECTS, OURS
from align.data.formats import (
    RecordReader,
    Records,
    read_conversations,
    read_preferences,
    read_prompts,
    read_texts,
)
from align.data.judged import read_labelled, read_steps
from align.data.records import Conversation, Labelled, Preference, Prompt, Record, Stepwise, Text
from align.ground.errors import InputError
from align.recipe import BadRows

Kind = Literal["steps", "pairs", "labelled", "sft", "texts", "prompts"]
KINDS: dict[str, Callable[[], RecordReader[Any]]] = {
    "steps": lambda: read_steps("\n"),
    "pairs": lambda: read_preferences,
    "labelled": read_labelled,
    "sft": lambda: read_conversations,
    "texts": lambda: read_texts,
    "prompts": lambda: read_prompts,
}
"""What `read_as` calls them -> what makes their reader; the earlier ones say more of a row: whatever asks something can
be read as a prompt."""
MEANT = {"steps": {"completions", "labels"}, "pairs": {"chosen", "rejected"}, "sft": {"completion"}}
"""Keys that no other kind has."""
FEW = 50


RECORDS = {
    Stepwise: "steps",
    Preference: "pairs",
    Labelled: "labelled",
    Conversation: "sft",
    Text: "texts",
    Prompt: "prompts",
}


def kind_of(record: Record) -> str:
    return RECORDS[type(record)]


@dataclass(frozen=True)
class ReadAs:
    """Reads a file as records of a kind; without one, of the first that half of its first and last rows or more are, so
    that a few bad ones don't make another of it. Raises: InputError where none of them is any."""

    kind: Kind | None
    readers: dict[str, RecordReader[Any]] = field(default_factory=dict)
    """By kind, what has read files of it: one reads all files of a run."""

    def __call__(
        self,
        path: str | Path,
        bad_rows: BadRows = "error",
        sample: int | None = None,
        columns: Mapping[str, str] | None = None,
        shape: str | None = None,
    ) -> Records[Any]:
        kind = self.kind or _likely(path, columns or {}, shape)
        reader = self.readers.setdefault(kind, KINDS[kind]())
        return reader(path, bad_rows, sample, columns, shape)


def _likely(path: str | Path, columns: Mapping[str, str], shape: str | None) -> str:
    if shape not in (None, OURS, *DIALECTS):
        raise InputError(f"shape: {shape} is not known. Expected {OURS} or one of {', '.join(DIALECTS)}.")
    found: dict[str, Records[Any]] = {}
    for kind, reader in KINDS.items():
        with suppress(InputError):
            found[kind] = reader()(path, "drop", FEW, columns, shape)
    if not found:
        read_conversations(path, "error", FEW, columns, shape)  # says what is missing
        raise InputError(f"{path}: its rows are no {', '.join(KINDS)}. Say which by read_as, to be told why.")
    counts = {kind: records.shapes.total() for kind, records in found.items()}
    likely = next(kind for kind, n in counts.items() if 2 * n >= max(counts.values()))
    unused = found[likely].unused.keys()
    meant = (kind for kind, keys in MEANT.items() if kind not in found and keys <= unused)
    return next(meant, likely)  # of which no row can be read, and whoever reads the file is told why
