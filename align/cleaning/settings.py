"""What may be set of cleaning, and what is done without it."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from align.recipe import File, Settings

PII = Literal["email", "ip", "iban", "card", "national_id", "phone"]
HIDDEN: dict[str, tuple[str, ...]] = {"all": get_args(PII), "none": ()}


class Cleaning(Settings):
    """What is done to rows, in the order in which it is done."""

    repair: bool = True
    """Repair text that was read in the wrong encoding, and remove control characters (ftfy)."""
    scrub: Literal["all", "none"] | list[PII] = "all"
    """What to put placeholders such as [EMAIL] in place of."""
    rules: Literal["auto", "none"] | list[str] = "auto"
    """Quality rules for what is learnt: `documents`, `answers` and names of rules, or `none`; `auto` takes `documents`
    for rows of `text` and `answers` for all others."""
    languages: list[str] = Field(default_factory=list)
    """Keep what is in these languages alone, by their codes: en,zh,fa (py3langid)."""
    word_lists: list[File] = Field(default_factory=list)
    """Files of words or phrases, one a line; rows whose texts hold one are removed."""
    exact: bool = True
    """Remove rows whose texts stand in an earlier row, blanks aside."""
    near: Annotated[float, Field(ge=0.5, le=1.0)] | None = 0.8
    """Remove rows each of whose parts is as similar as this to an earlier row's: the Jaccard index of their runs of 5
    words; null for not looking."""


class Decontamination(Settings):
    """Which rows count as holding a question of an evaluation."""

    ngram: Annotated[int, Field(ge=4, le=50)] = 8
    """Words in a run that a row may share with a question."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a long question's runs that a row must hold to be removed."""
    fuzzy: Annotated[float, Field(ge=0.7, le=1)] = 0.8
    """How alike a question, and a passage of a row's text, must be for the row to be removed: 1 less the share of words
    that differ; below 8 words, of letters, and 0.9 at least."""
