"""Kinds of records that a file may hold, and which of them it does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from align.data.formats import (
    RecordReader,
    Records,
    read_conversations,
    read_labelled,
    read_preferences,
    read_prompts,
    read_texts,
)
from align.ground.errors import InputError
from align.recipe import BadRows

KINDS: dict[str, RecordReader[Any]] = {
    "pairs": read_preferences,
    "labelled": read_labelled,
    "sft": read_conversations,
    "texts": read_texts,
    "prompts": read_prompts,
}
"""What `--kind` calls them; of two that fit a file as well, the first says more of it."""
FEW = 50


def read(
    path: str | Path, kind: str | None, bad_rows: BadRows, columns: Mapping[str, str], shape: str | None
) -> tuple[str, Records[Any]]:
    """(kind, records) of a file; without a kind, the one that most of its first and last rows are. Raises: InputError
    where none of them is any."""
    kind = kind or _kind_of(path, columns, shape)
    return kind, KINDS[kind](path, bad_rows, columns=columns, shape=shape)


def _kind_of(path: str | Path, columns: Mapping[str, str], shape: str | None) -> str:
    counts: dict[str, int] = {}
    for kind, reader in KINDS.items():
        with suppress(InputError):
            counts[kind] = reader(path, "drop", FEW, columns, shape).shapes.total()
    if not counts:
        read_conversations(path, "error", FEW, columns, shape)  # says what is missing
        raise InputError(f"{path}: its rows are no {', '.join(KINDS)}. Say which by --kind, to be told why.")
    return max(counts, key=lambda kind: counts[kind])
