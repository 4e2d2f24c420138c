"""Kinds of records that a file may hold, and which of them it does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from align.data.dialects.table import DIALECTS, OURS
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
"""What `--kind` calls them; the earlier ones say more of a row: whatever asks something can be read as a prompt."""
MEANT = {"pairs": {"chosen", "rejected"}, "sft": {"completion"}}
"""Keys that no other kind has."""
FEW = 50


def read(
    path: str | Path, kind: str | None, bad_rows: BadRows, columns: Mapping[str, str], shape: str | None
) -> tuple[str, Records[Any]]:
    """(kind, records) of a file; without a kind, the first that half of its first and last rows or more are, so that a
    few bad ones don't make another of it. Raises: InputError where none of them is any."""
    kind = kind or _kind_of(path, columns, shape)
    return kind, KINDS[kind](path, bad_rows, columns=columns, shape=shape)


def _kind_of(path: str | Path, columns: Mapping[str, str], shape: str | None) -> str:
    if shape not in (None, OURS, *DIALECTS):
        raise InputError(f"shape: {shape} is not known. Expected {OURS} or one of {', '.join(DIALECTS)}.")
    found: dict[str, Records[Any]] = {}
    for kind, reader in KINDS.items():
        with suppress(InputError):
            found[kind] = reader(path, "drop", FEW, columns, shape)
    if not found:
        read_conversations(path, "error", FEW, columns, shape)  # says what is missing
        raise InputError(f"{path}: its rows are no {', '.join(KINDS)}. Say which by --kind, to be told why.")
    counts = {kind: records.shapes.total() for kind, records in found.items()}
    likely = next(kind for kind, n in counts.items() if 2 * n >= max(counts.values()))
    unused = found[likely].unused.keys()
    meant = (kind for kind, keys in MEANT.items() if kind not in found and keys <= unused)
    return next(meant, likely)  # of which no row can be read, and whoever reads the file is told why
