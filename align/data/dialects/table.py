"""The dialects that are known, by the names that `shape:` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from align.data.dialects.compared import alpaca_eval, arena, helpsteer, lmsys, openai_pairs, pku, shp, stack_exchange
from align.data.dialects.listed import answers, argilla, distilabel, nectar, oasst, ranked, ultrafeedback
from align.data.dialects.turns import capybara, context_messages, mt_bench, wildchat
from align.data.records import Row
from align.data.shapes.keys import ASKED, LABELLED, first
from align.data.shapes.messages import DIALOGUES
from align.ground.errors import InputError

OURS = "ours"
"""What `shape:` calls rows in keys of ours."""
PAIRS = ("preference", LABELLED)
DIALOGS = ("conversation", "preference", LABELLED, "prompt")


class Dialect(NamedTuple):
    """How rows of a dialect become rows of ours."""

    as_ours: Callable[[str, Row], Row | list[Row]]
    """(where, row) -> a row of ours, or several; any other row as it is. Raises: InputError for what cannot be said in
    ours."""
    kinds: tuple[str, ...] = PAIRS
    """Kinds of record that it holds. The prompts of pairs are read too, where no key of ours holds them."""
    detected: bool = True
    """Whether rows can be told by their keys; others are read so where `shape:` says it."""
    note: str = ""
    """What is to be said of it."""


DIALECTS: dict[str, Dialect] = {
    "openai": Dialect(openai_pairs.as_ours),
    "pku_saferlhf": Dialect(pku.as_ours),
    "helpsteer": Dialect(helpsteer.as_ours),
    "lmsys": Dialect(lmsys.as_ours, (*PAIRS, "prompt")),
    "arena": Dialect(arena.as_ours),
    "alpaca_eval": Dialect(alpaca_eval.as_ours),
    "shp": Dialect(shp.as_ours),
    "stack_exchange_paired": Dialect(stack_exchange.as_ours),
    "stack_exchange": Dialect(answers.as_ours),
    "nectar": Dialect(nectar.as_ours),
    "ultrafeedback": Dialect(ultrafeedback.as_ours),
    "distilabel": Dialect(distilabel.as_ours),
    "argilla": Dialect(argilla.as_ours),
    "oasst": Dialect(oasst.as_ours),
    "ranked": Dialect(ranked.as_ours, detected=False),
    "capybara": Dialect(capybara.as_ours, DIALOGS),
    "wildchat": Dialect(wildchat.as_ours, DIALOGS),
    "openrlhf": Dialect(context_messages.as_ours, DIALOGS),
    "mt_bench": Dialect(mt_bench.as_ours, ("prompt",), note="the first turn alone"),
}


def told(name: str) -> str:
    """A dialect's name, with what is to be said of it."""
    note = DIALECTS[name].note
    return f"{name} ({note})" if note else name


def dialects_for(kind: str, shape: str | None) -> Mapping[str, Dialect]:
    """The dialects that rows of a kind may be in; of `shape` alone, where it names one. Raises: InputError for a shape
    that is not known, or holds no such records."""
    may = {n: d for n, d in DIALECTS.items() if kind in d.kinds or (kind == "prompt" and d.kinds == PAIRS)}
    if shape is None:
        return {name: dialect for name, dialect in may.items() if dialect.detected}
    if shape == OURS:
        return {}
    if shape not in may:
        known = "is not known" if shape not in DIALECTS else f"holds no {kind}s"
        raise InputError(f"shape: {shape} {known}. Expected {OURS} or one of {', '.join(may)}; or leave it out.")
    return {shape: may[shape]}


def as_ours(where: str, row: Row, kind: str, among: Mapping[str, Dialect]) -> tuple[list[Row], str | None]:
    """(rows of ours, the name of the dialect that the row is in, None where it is none of them)."""
    asked = first(row, (*ASKED, *DIALOGUES)) if kind == "prompt" else None
    has_prompt = asked is not None and isinstance(row[asked], str | list)
    for name, dialect in among.items():
        if has_prompt and dialect.kinds == PAIRS and len(among) > 1:
            continue
        ours = dialect.as_ours(where, row)
        if ours is not row:
            return ours if isinstance(ours, list) else [ours], name
    return [row], None
