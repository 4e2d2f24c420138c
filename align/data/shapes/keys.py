"""Keys of a row: those that say something to a kind of record, those that say what Align cannot do, and what else
people call them.

A key with a meaning is honoured or refused. What is in no table here is not used, and is named once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.data.records import Row
from align.data.shapes.messages import DIALOGUES, REASONING
from align.data.shapes.values import nothing, number
from align.ground.errors import InputError

PROMPT = ("prompt", "instruction", "question", "query")
"""What is asked (Alpaca, GSM8K, Dolly, OpenOrca); one of them in a row."""
GIVEN = ("input", "context")
"""Text that belongs to what is asked: it follows it on a line of its own, as in LLaMA-Factory (data/README.md,
"alpaca")."""
ASKED = (*PROMPT, "input")
"""Where the prompt is, first come first served; `input` alone where nothing else is asked."""
COMPLETION = ("completion", "output", "response", "answer")
"""The answer; the first of them that a row has."""
SYSTEM = ("system", "system_prompt", "system_message")
TOOLS = ("tools", "functions")
OPENING = (*DIALOGUES, *SYSTEM, "history", *PROMPT, *GIVEN, *TOOLS)
"""All that may say what stands before an answer."""
PAIR = ("chosen", "rejected", "margin", "chosen_cut", "rejected_cut")
SCORES: dict[tuple[str, str], int] = {
    **{(f"{name}_chosen", f"{name}_rejected"): sign for name, sign in (("score", 1), ("rating", 1), ("rank", -1))},
    **{(f"chosen{sep}{name}", f"rejected{sep}{name}"): 1 for name in ("score", "rating") for sep in "_-"},
    ("chosen_rank", "rejected_rank"): -1,
}
"""What two answers were given, by its two keys: 1 where more is better, -1 where less is (UltraFeedback, Argilla,
distilabel)."""

RANKED = ("responses", "scores", "ranks")
"""Several answers to one prompt, and what each is worth: scores, more is better, or ranks, 1 is best."""
TIED = ("is_tie", "tie", "tied")
"""Whether a pair's answers are equally good."""
ASIDE = ("ignore", "ignored", "skip", "skipped", "exclude", "excluded", "discard", "discarded")
"""Whether a row is to be left out."""
LABELS = ("label", "kto_tag")
"""Whether an answer is desirable (TRL, LLaMA-Factory)."""
LABELLED = "labelled answer"
"""What messages call a record with a label."""
STEPS = ("completions", "labels")
"""The steps of an answer, and whether each is right (TRL)."""
STEPWISE = "stepwise answer"
"""What messages call a record of them."""
_CONVERSATION = (*OPENING, *COMPLETION, *REASONING, *ASIDE)
_PREFERENCE = (*OPENING, *PAIR, *RANKED, *(key for both in SCORES for key in both), *TIED, *ASIDE)

KEYS: dict[str, tuple[str, ...]] = {
    "conversation": _CONVERSATION,
    "preference": _PREFERENCE,
    LABELLED: tuple(dict.fromkeys((*_CONVERSATION, *LABELS, *_PREFERENCE))),
    STEPWISE: (*OPENING, *STEPS, *ASIDE),
    "prompt": (*OPENING, *ASIDE),
    "document": ("text", *ASIDE),
}
"""Keys that each kind of record reads."""


MEDIA = ("images", "image", "videos", "video", "audios", "audio")
WEIGHTS = ("weight", "weights", "loss_weight", "sample_weight", "train", "loss")
MASKS = ("loss_mask", "completion_mask", "assistant_masks", "train_on_input", "train_on_inputs", "mask_history")
VERDICTS = (*LABELS, "winner", "preference", "preferred", "better", "rank", "chosen_first")
"""What says of a pair which answer is the better, where chosen and rejected may say another thing."""
SURE = ("label_prob", "label_probability", "preference_prob", "chosen_prob", "soft_label")
"""How probably a pair's chosen answer is the better one."""
GOOD = {
    "true", "yes", "y", "t", "good", "correct", "right", "desirable", "chosen", "accepted", "accept",
    "positive", "pos", "pass", "passed",
}  # fmt: skip
BAD = {
    "false", "no", "n", "f", "bad", "incorrect", "wrong", "undesirable", "rejected", "reject",
    "negative", "neg", "fail", "failed",
}  # fmt: skip
TEMPLATE = ("documents", "chat_template_kwargs")

AGREES = ("chosen", "1", "1.0", "true", "yes")
"""Verdicts on a pair that say what chosen and rejected say."""
TIES = ("tie", "tied", "draw", "equal", "both", "same")
YES, NO = ("true", "yes", "1", "1.0"), ("false", "no", "0", "0.0")
_ANSWERED = dict.fromkeys(MEDIA, "only text can be rendered. Remove the row, or the column from all rows.") | {
    **dict.fromkeys(WEIGHTS, "all rows count alike. Leave the row out or write it several times, and remove the key."),
    **dict.fromkeys(
        MASKS,
        "which tokens count is not read from a row: mark messages with weight: 0 or train: false, and remove the key.",
    ),
    **dict.fromkeys(
        TEMPLATE, "it is not passed to the chat template. Write what it says into the messages, and remove the key."
    ),
}
REFUSED: dict[str, dict[str, str]] = {
    "conversation": _ANSWERED
    | dict.fromkeys(
        (*LABELS, "rank"),
        "answers with such a label are good or bad ones, and all are learnt here. Keep the good ones, and remove the "
        "key.",
    ),
    "preference": _ANSWERED
    | dict.fromkeys(
        VERDICTS,
        "which answer is the better is said by chosen and rejected alone. Have them say what it says, and remove the "
        "key.",
    )
    | dict.fromkeys(
        SURE,
        "every pair's chosen answer is taken as surely the better one, which is 1. Leave the row out, or swap its "
        "answers, and remove the key.",
    )
    | dict.fromkeys(REASONING, "of which answer is not said. Write it into the messages of chosen and rejected."),
    LABELLED: _ANSWERED | {"rank": "an answer is desirable or not here. Say which by label, and remove the key."},
    STEPWISE: _ANSWERED
    | dict.fromkeys((*LABELS, "rank"), "whether each step is right is said by labels alone. Remove the key.")
    | dict.fromkeys(REASONING, "of which step is not said. Write it into completions."),
    "prompt": dict.fromkeys(MEDIA, _ANSWERED["image"]) | {"chat_template_kwargs": _ANSWERED["chat_template_kwargs"]},
    "document": {key: why for key, why in _ANSWERED.items() if key not in TEMPLATE},
}
"""Keys that say what a kind of record cannot honour, and what to do instead."""

KNOWN = {key for keys in KEYS.values() for key in keys} | {key for keys in REFUSED.values() for key in keys}


def says(value: object) -> bool:
    """Whether a value says something; a column that other rows fill is often null or empty."""
    return not nothing(value)


def first(row: Mapping[str, object], keys: Sequence[str]) -> str | None:
    """The first of these keys that the row has with a value, else the first that it has at all."""
    there = [key for key in keys if key in row]
    saying = [key for key in there if says(row[key])]
    return next(iter(saying or there), None)


def check_refused(where: str, row: Mapping[str, object], kind: str) -> None:
    """Raises: InputError for a key that says what cannot be honoured."""
    for key in (key for key in REFUSED[kind] if key in row):
        if says(row[key]) and not _is_harmless(key, row, kind):
            raise InputError(f'{where}: has "{key}", but {REFUSED[kind][key]}')


def _is_harmless(key: str, row: Mapping[str, object], kind: str) -> bool:
    """Whether a key that could be refused says nothing that is not honoured anyway."""
    value = row[key]
    if key in WEIGHTS and said(value) in ("1", "1.0", "true"):
        return True
    if key in LABELS and not is_label(value):
        return True
    if key in SURE:
        return number(value) in (0.5, 1.0)
    if key in VERDICTS and kind == "preference":
        return said(value) in (*AGREES, *TIES) or not {"chosen", "rejected"} <= row.keys()
    return False


def said(value: object) -> str:
    """A value as it is compared with words."""
    return str(value).strip().lower()


def is_label(value: object) -> bool:
    """Whether a value judges an answer: a yes or no, a number from -1 to 1, a word; any other is the name or the number
    of a topic."""
    text = said(value)
    try:
        return abs(float(text)) <= 1
    except ValueError:
        return text in GOOD | BAD


def plain_name(name: str) -> str:
    """A key as it is known here, whatever its case: "Prompt " is prompt."""
    return name.strip().lower().replace(" ", "_")


def renamed(where: str, row: Row, kind: str) -> Row:
    """The row with those keys that say something to this kind, in whatever case, by the names that they are known by.

    Raises: InputError where two say something under one name.
    """
    out: Row = {}
    for key, value in row.items():
        plain = plain_name(key)
        name = plain if plain in KEYS[kind] or plain in REFUSED[kind] else key
        if name in out and says(out[name]) and says(value):
            other = next(key for key in row if key != name and plain_name(key) == name)
            raise InputError(f'{where}: the key "{name}" stands twice, once as {other!r}. Rename or remove one.')
        out[name] = value if says(value) or name not in out else out[name]
    return out


def unused(row: Mapping[str, object], kind: str) -> list[str]:
    """Keys of a row that a record of this kind does not read; an answer by a second name is one of them."""
    others = [key for key in row if key not in KEYS[kind]]
    if kind == "preference":
        others += [key for both in SCORES for key in both if key in row and not {*both} <= row.keys()]
        others += [key for key in RANKED if key in row and not isinstance(row[key], list)]
    if kind == "conversation":
        in_turns = first(row, (*DIALOGUES, *ASKED)) in DIALOGUES
        read = None if in_turns else first(row, COMPLETION)
        others += [key for key in COMPLETION if key in row and key != read]
    return others


def named(names: Sequence[str], limit: int = 12) -> str:
    """Keys as they are called, at most so many of them."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    shown = [name if name.isprintable() else repr(name) for name in names[:limit]]
    return ", ".join(shown) + more
