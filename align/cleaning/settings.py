"""What may be set of cleaning, and what is done without it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PII = Literal["email", "ip", "iban", "card", "national_id", "phone"]


class Cleaning(BaseModel):
    """What is done to rows, in the order in which it is done."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    repair: bool = True
    """Repair text that was read in the wrong encoding, and remove control characters (ftfy)."""
    scrub: tuple[PII, ...] = ("email", "ip", "iban", "card", "national_id", "phone")
    """What to put placeholders such as [EMAIL] in place of; `none` for nothing."""
    rules: tuple[str, ...] = ("auto",)
    """Quality rules for what is learnt: `documents`, `answers`, names of rules, or `none`; `auto` takes `documents` for
    rows of `text` and `answers` for all others."""
    languages: tuple[str, ...] = ()
    """Keep what is in these languages alone, by their codes: en,zh,fa (py3langid)."""
    word_lists: tuple[str, ...] = ()
    """Files of words or phrases, one a line; rows whose texts hold one are removed."""
    exact: bool = True
    """Remove rows whose texts stand in an earlier row, blanks aside."""
    near: Annotated[float, Field(ge=0.5, le=1.0)] | None = 0.8
    """Remove rows each of whose parts is as similar as this to an earlier row's: the Jaccard index of their runs of 5
    words; `none` for not looking."""


class Decontamination(BaseModel):
    """Which rows count as holding a question of an evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    ngram: Annotated[int, Field(ge=4, le=50)] = 8
    """Words in a run that a row may share with a question."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a long question's runs that a row must hold to be removed."""
    fuzzy: Annotated[float, Field(ge=0.7, le=1)] = 0.8
    """How alike a short question, and a row's text or a passage of it, must be for the row to be removed: 1 less the
    share of words that differ."""
