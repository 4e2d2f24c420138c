"""What stages that make data of data are told alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from align.cleaning.files import ASIDE, REPORT
from align.data.tools.kinds import Kind
from align.recipe import Files, Place, Positional, RowSettings, Runtime, StageConfig

JSON_LINES = (".jsonl", ".ndjson", ".json")
"""Endings of names that are read as what is written here."""


class CurationConfig(RowSettings, StageConfig):
    """Rows in and out"""

    draws: ClassVar[bool] = False
    """Whether anything is left to chance."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Files of what comes out beside its rows."""
    unread: ClassVar[frozenset[str]] = frozenset({"seed"})
    """As in `TrainConfig`."""

    data: Annotated[Files, Positional]
    """Files, folders, patterns, or data artifacts, one after the other."""
    out: Annotated[Place | None, Runtime] = None
    """A new .jsonl for the rows; without it they are in the store alone. What else is made lies beside it."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found, out = super().conflicts(given), given.get("out")
        if isinstance(out, str) and Path(out).suffix.lower() not in JSON_LINES:
            found.append(f"out: {out}: rows are written as JSON lines. End the name in {JSON_LINES[0]}.")
        return found

    def without_effect(self, parent: str | None) -> dict[str, str]:
        nothing = {} if self.draws else {"seed": "nothing is left to chance here. Leave it out."}
        return super().without_effect(parent) | nothing


class ReadConfig(CurationConfig):
    """Rows in and out"""

    read_as: Kind | None = None
    """What the rows are; without it, what most of them are."""


class CleaningConfig(CurationConfig):
    """Rows in and out"""

    beside: ClassVar[tuple[str, ...]] = (ASIDE, REPORT)
    unread: ClassVar[frozenset[str]] = frozenset({"seed", "shape"})

    def without_effect(self, parent: str | None) -> dict[str, str]:
        kept = "rows keep the keys that they have; `align data convert` rewrites them in ours. Leave it out."
        return super().without_effect(parent) | {"shape": kept}
