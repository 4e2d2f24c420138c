"""What is said of records that are too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Truncate = Literal["error", "drop", "cut"]


def too_long(where: str, longest: int, masks: Sequence[Sequence[bool]], max_length: int, limit: str) -> str:
    """A record of `longest` tokens, of which those in `masks` count; `limit` says what `max_length` is."""
    more = ", or raise max_length" if limit == "max_length" else ""
    read = max(mask.index(True) for mask in masks)
    if read >= max_length:
        return (
            f"{where}: {read:,} tokens come before what is learnt, which leaves no room for it: {limit} is "
            f"{max_length:,}. Set `truncate: drop` to leave such records out (they are counted), "
            f"shorten the prompt{more}."
        )
    return (
        f"{where}: {longest:,} tokens, but {limit} is {max_length:,}. Set `truncate: drop` to leave such records out, "
        f"`truncate: cut` to cut the end of the completion (both are counted){more}."
    )


def none_left(records: int, max_length: int, limit: str, cut: bool) -> str:
    """All were dropped; `cut`: though ends are cut."""
    if cut:
        more = ", or raise max_length as far as the model's context allows" if limit == "max_length" else ""
        return (
            f"all {records:,} records were dropped: within {limit} ({max_length:,} tokens) no prompt leaves room for "
            f"an answer, or for two that differ. Shorten the prompts{more}."
        )
    raised = "raise max_length or set" if limit == "max_length" else "set"
    return (
        f"all {records:,} records are longer than {limit} ({max_length:,} tokens) and were dropped; {raised} "
        "`truncate: cut`."
    )
