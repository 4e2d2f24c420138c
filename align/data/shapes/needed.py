"""What a row lacks, and what would make it one of ours."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from align.data.shapes.keys import (
    ASKED,
    COMPLETION,
    KNOWN,
    LABELLED,
    LABELS,
    STEPS,
    STEPWISE,
    first,
    named,
    plain_name,
)
from align.data.shapes.messages import DIALOGUES
from align.ground.errors import InputError

NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
    "conversation": {"prompt": ASKED, "completion": COMPLETION},
    "preference": {"prompt": (*ASKED, *DIALOGUES), "chosen": ("chosen",), "rejected": ("rejected",)},
    LABELLED: {"prompt": (*ASKED, *DIALOGUES), "label": LABELS},
    STEPWISE: {"prompt": (*ASKED, *DIALOGUES), **{key: (key,) for key in STEPS}},
    "prompt": {"prompt": (*ASKED, *DIALOGUES)},
    "document": {"text": ("text",)},
}
"""What a row must have, each under one of some keys; a conversation may be `messages` instead."""

SYNONYMS = {
    **dict.fromkeys(("user", "human", "problem", "input_text", "source", "goal"), "prompt"),
    **dict.fromkeys(
        ("assistant", "gpt", "reply", "solution", "target", "target_text", "assistant_answer"), "completion"
    ),
    **dict.fromkeys(("preferred", "winner", "preferred_output", "chosen_response"), "chosen"),
    **dict.fromkeys(("dispreferred", "loser", "non_preferred_output", "rejected_response"), "rejected"),
    **dict.fromkeys(("content", "story", "document"), "text"),
    **dict.fromkeys(("conversation", "dialogue", "dialog", "chat", "turns"), "messages"),
}
"""What others call a key that is missing, for advice alone: what it holds may differ."""
_TWO = "Write the better of {} and {} as chosen, the other as rejected, and leave out ties."
MAPPINGS: tuple[tuple[set[str], str], ...] = (
    ({"input_ids"}, "These rows are token ids already; give the texts that they were made from."),
    ({"segments"}, "Write the segments as messages, those that are not learnt with `weight: 0`."),
    ({*STEPS}, "These rows hold steps that are called right or wrong, for reward (`steps`)."),
    ({"completions"}, "Write the completions as `responses`, with a list of their `scores`."),
    (
        {"answers"},
        "Where they stand in the order of their worth, best first, set `shape: ranked`; else write them as "
        "`responses`, with a list of their `scores`.",
    ),
    *(
        ({f"{name}{one}", f"{name}{two}"}, _TWO.format(f"{name}{one}", f"{name}{two}"))
        for name in ("response_", "response", "output_", "answer_")
        for one, two in (("0", "1"), ("1", "2"), ("a", "b"), ("A", "B"))
    ),
    ({"text"}, "Rows of plain text are for pretrain, with `learn` as it is by default."),
)
"""Shapes that are no rows of ours, by keys that tell them, and how to map them."""


def need(where: str, row: Mapping[str, object], kind: str) -> None:
    """Raises: InputError when a row lacks what it must have, naming the keys found and the renaming or mapping that
    would do."""
    missing = [name for name, keys in NEEDED[kind].items() if row.keys().isdisjoint(keys)]
    if not missing:
        return
    names = " and ".join(f'"{name}"' for name in missing)
    either = " (or messages)" if kind in ("conversation", LABELLED, STEPWISE, "prompt") else ""
    raise InputError(
        f"{where}: {names} {'is' if len(missing) == 1 else 'are'} missing. A {kind} needs "
        f"{listed(list(NEEDED[kind]))}{either}; found {named(list(row)) or 'nothing'}.{_remedy(row, kind, missing)}"
    )


def _remedy(row: Mapping[str, object], kind: str, missing: Sequence[str]) -> str:
    """What would make a row of ours of this one, as a sentence; "" where nothing is known."""
    mapping = next((text for keys, text in MAPPINGS if keys <= row.keys()), None)
    if mapping:
        return f" {mapping}"
    if kind == "conversation" and {"chosen", "rejected"} <= row.keys():
        return " These rows hold pairs, for reward and dpo; write the answers to imitate as completion."
    answer = first(row, COMPLETION)
    if kind == "preference" and len(missing) == 2 and answer:
        return (
            f" These rows hold one answer each ({answer}); write two of a prompt, the better and the worse, as "
            "chosen and rejected."
        )
    wanted = {*missing, *(["messages"] if kind != "document" else [])}
    known = {name: SYNONYMS.get(plain_name(name)) for name in row}
    if renames := {name: new for name, new in known.items() if new in wanted}:
        both = " and ".join(f"{name} to {new}" for name, new in renames.items())
        return f" Rename {both}, or say so: {_as_columns(renames)}."
    others = [name for name in row if name not in KNOWN]
    if len(others) == len(missing):
        theirs, ours = listed(others), listed(missing)
        meant = _as_columns(dict(zip(others, missing, strict=True)))
        return f" Where {theirs} {'is' if len(missing) == 1 else 'are'} {ours}, say so: {meant}."
    return f" Where columns of other names hold them, say which: --columns.{missing[0]} NAME." if others else ""


def _as_columns(names: Mapping[str, str]) -> str:
    """The flags that say which of our keys these names are."""
    return " ".join(f"--columns.{ours} {shlex.quote(theirs)}" for theirs, ours in names.items())


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
