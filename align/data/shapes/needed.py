"""What a row lacks, and what would make it one of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from align.data.shapes.advice import advice, listed
from align.data.shapes.keys import ASKED, COMPLETION, KNOWN, LABELLED, LABELS, STEPS, STEPWISE, first, named
from align.data.shapes.messages import DIALOGUES
from align.ground.errors import InputError

NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
    "conversation": {"prompt": ASKED, "completion": COMPLETION},
    "preference": {"prompt": (*ASKED, *DIALOGUES), "chosen": ("chosen",), "rejected": ("rejected",)},
    LABELLED: {"prompt": (*ASKED, *DIALOGUES), "completion": (*COMPLETION, *DIALOGUES), "label": LABELS},
    STEPWISE: {"prompt": (*ASKED, *DIALOGUES), **{key: (key,) for key in STEPS}},
    "prompt": {"prompt": (*ASKED, *DIALOGUES)},
    "document": {"text": ("text",)},
}
"""What a row must have, each under one of some keys; a conversation may be `messages` instead."""

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


TABLE = re.compile(r"\.[ct]sv(\.\w+)?:\d+$")
SENTENCE = re.compile(r"[.?!…。？！]\s*$|^.{41}|\s(.*\S\s){3}")
"""What is rather a text than the name of a column: it ends as a sentence, or is long, or has five words."""


def need(where: str, row: Mapping[str, object], kind: str) -> None:
    """Raises: InputError when a row lacks what it must have, naming the keys found and the renaming or mapping that
    would do."""
    missing = [name for name, keys in NEEDED[kind].items() if row.keys().isdisjoint(keys)]
    if not missing:
        return
    names = " and ".join(f'"{name}"' for name in missing)
    either = {"preference": "", "document": "", LABELLED: " (or messages and label)"}.get(kind, " (or messages)")
    raise InputError(
        f"{where}: {names} {'is' if len(missing) == 1 else 'are'} missing. A {kind} needs "
        f"{listed(list(NEEDED[kind]))}{either}; found {named(list(row)) or 'nothing'}."
        f"{_headless(where, row, kind)}{_remedy(row, kind, missing)}"
    )


def _headless(where: str, row: Mapping[str, object], kind: str) -> str:
    """That the first line of a table is read as its header, where that looks like a row; "" elsewhere."""
    if not TABLE.search(where) or not any(SENTENCE.search(name) for name in row if name not in KNOWN):
        return ""
    names = listed(list(NEEDED[kind]))
    return f" The first line looks like a row: if the file has no header, write a line above it that names {names}."


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
    return advice(row, missing)
