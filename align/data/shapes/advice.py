"""Which columns of a file may hold what its rows lack, and how to say so: as flags, or as a recipe has it.

{"user": "Hi", "Die Antwort": "Hello!"}
"""

from __future__ import annotations

import difflib
import io
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from ruamel.yaml import YAML

from align.data.shapes.keys import KNOWN, STEPS, is_label, plain_name
from align.data.shapes.values import nothing, number

SYNONYMS = {
    **dict.fromkeys(("human", "problem", "input_text", "goal", "q"), "prompt"),
    **dict.fromkeys(("gpt", "solution", "target", "target_text", "assistant_answer", "a"), "completion"),
    **dict.fromkeys(("preferred", "winner", "preferred_output", "chosen_response"), "chosen"),
    **dict.fromkeys(("dispreferred", "loser", "non_preferred_output", "rejected_response"), "rejected"),
    **dict.fromkeys(("content", "story", "document"), "text"),
    **dict.fromkeys(("conversation", "dialogue", "dialog", "chat", "turns"), "messages"),
}
"""What others call a key that is missing, for advice alone: what it holds may differ."""
WORDS = {
    **dict.fromkeys(("prompt", "question", "user", "frage", "pregunta", "domanda", "pergunta"), "prompt"),
    **dict.fromkeys(
        (
            "completion",
            "answer",
            "response",
            "reply",
            "bot",
            "assistant",
            "antwort",
            "respuesta",
            "risposta",
            "resposta",
            "réponse",
        ),
        "completion",
    ),
}
"""Words in a column's name that say what it holds."""
CALLED = SYNONYMS | WORDS
MISSPELT = ("messages", "prompt", "completion", "chosen", "rejected")
"""Keys that a name may be meant for."""
LONG = 5
"""Letters that such a name has at least."""
UNWANTED = {"bad", "wrong", "incorrect", "toxic", "harmful", "unsafe", "rejected", "worse", "negative"}
"""Words in the name of a column that says or holds the contrary of what is learnt."""
IDS = {"id", "ids", "uuid", "guid", "index", "idx"}
"""Words in the name of a column that holds no text to learn."""
PLACE = "NAME"
"""Stands where a name is to be given."""
_IN_RECIPE: ContextVar[bool] = ContextVar("in_recipe", default=False)
_OF_FILE: ContextVar[bool] = ContextVar("of_file", default=False)


def in_recipe() -> AbstractContextManager[None]:
    """What is advised meanwhile is said as a recipe has it."""
    return _while(_IN_RECIPE)


def of_file() -> AbstractContextManager[None]:
    """What is advised meanwhile is of one of several files, each of which may call its columns otherwise."""
    return _while(_OF_FILE)


@contextmanager
def _while(holds: ContextVar[bool]) -> Iterator[None]:
    before = holds.set(True)
    try:
        yield
    finally:
        holds.reset(before)


def advice(row: Mapping[str, object], missing: Sequence[str]) -> str:
    """Which columns may hold the `missing` keys, as a sentence; "" where none may."""
    away = IDS if "rejected" in missing else IDS | UNWANTED
    usable = [name for name in row if name.strip() and away.isdisjoint(_words(name))]
    alike = _named_alike(row, usable, missing)
    if "messages" in alike and not {"prompt", "completion"}.intersection(missing) <= alike.keys():
        missing = ["messages", *(key for key in missing if key not in ("prompt", "completion"))]
    alike = {key: alike[key] for key in missing if key in alike}
    taken = {name for names in alike.values() for name in names}
    others = [name for name in usable if name not in KNOWN | taken and plain_name(name) not in CALLED]
    may = {key: [n for n in others if _may_be(key, row[n], missing)] for key in missing if key not in alike}
    hidden = {name: None for names in (alike | may).values() for name in names if not name.isprintable()}
    if hidden:
        return (
            f" Rename {listed([*map(repr, hidden)])} in the file first: the name holds characters that are not shown, "
            "so it cannot be copied."
        )
    alone = {key: names for key, names in may.items() if len(names) == 1 and _only_there(names[0], may)}
    columns = {key: (alike | alone)[key] for key in missing if key in alike | alone}
    asked = [key for key in may if key not in alone and may[key]]
    return _sentence(columns, asked, [key for key in may if not may[key]] if row.keys() - KNOWN else [])


def _sentence(columns: Mapping[str, Sequence[str]], asked: Sequence[str], absent: Sequence[str]) -> str:
    """What to do: keys and the columns that may hold them, the first one best; keys that one of several columns may
    hold; and those that none does."""
    said = _say_so({key: names[0] for key, names in columns.items()} | dict.fromkeys(asked, PLACE))
    lack = f" No column looks like {listed(absent)}: add {'it' if len(absent) == 1 else 'them'}." if absent else ""
    if not columns and len(asked) > 1:
        return f" Names do not tell which columns are {listed(asked)}: look at the rows, and say so: {said}.{lack}"
    if not columns:
        return (f" Where a column of another name holds it, say which: {said}." if asked else "") + lack
    names = {key: first + (f" (or {listed(more)})" if more else "") for key, (first, *more) in columns.items()}
    if not asked and all(_called(first) == key for key, (first, *_) in columns.items()):
        both = " and ".join(f"{name} to {key}" for key, name in names.items())
        return f" Rename {both}, or say so: {said}.{lack}"
    which = f", and which {'column is' if len(asked) == 1 else 'columns are'} {listed(asked)}" if asked else ""
    theirs = f"{listed([*names.values()])} {'is' if len(names) == 1 else 'are'}"
    return f" Where {theirs} {listed([*names])}, say so{which}: {said}.{lack}"


def _named_alike(row: Mapping[str, object], names: Sequence[str], missing: Sequence[str]) -> dict[str, list[str]]:
    """Columns that are called much as a missing key, or as a whole dialogue; a whole name goes before a word in it."""
    wanted = {*missing, *(["messages"] if {"prompt", "completion"}.intersection(missing) else [])}
    by_word: list[str] = []
    out: dict[str, list[str]] = {}
    for name in names:
        key = _called(name, isinstance(row[name], list))
        if key and key in wanted and isinstance(row[name], str | list | None):
            out.setdefault(key, []).append(name)
        elif key is None and name not in KNOWN:
            by_word.append(name)
    for name in by_word:
        said = {WORDS[word] for word in _words(name) if word in WORDS} & wanted
        if len(said) == 1 and all(_may_be(key, row[name], missing) for key in said):
            out.setdefault(said.pop(), []).append(name)
    return out


def _called(name: str, is_list: bool = True) -> str | None:
    """The key of ours that a whole name stands for, also misspelt; a whole dialogue is a list."""
    plain = plain_name(name)
    if plain in CALLED or name in KNOWN:
        return CALLED.get(plain)
    keys = [key for key in MISSPELT if is_list or key != "messages"]
    near = difflib.get_close_matches(plain, keys, 1, 0.82) if len(plain) >= LONG else []
    return near[0] if near else None


def _may_be(key: str, value: object, missing: Sequence[str]) -> bool:
    """Whether a value may be what stands under a key."""
    if nothing(value):
        return True
    if key == "label":
        return is_label(value)
    if key in STEPS:
        return isinstance(value, str | list)
    if "label" in missing and is_label(value):
        return False
    return isinstance(value, list) or (isinstance(value, str) and math.isnan(number(value)))


def _only_there(name: str, may: Mapping[str, Sequence[str]]) -> bool:
    return sum(name in names for names in may.values()) == 1


def _words(name: str) -> list[str]:
    apart = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.findall(r"[^\W\d_]+", apart)]


def _say_so(columns: Mapping[str, str]) -> str:
    """What says which of our keys these columns are."""
    if _IN_RECIPE.get():
        yaml, out = YAML(), io.StringIO()
        yaml.default_flow_style, yaml.width = True, 10**6
        yaml.dump(dict(columns), out)
        said = f"columns: {out.getvalue().strip()}"
        return f"`{{file: …, {said}}}` for this file in `data`" if _OF_FILE.get() else f"`{said}` in the recipe"
    flags = []
    for ours, theirs in columns.items():
        joined = "=" if theirs.startswith("-") else " "
        flags.append(f"--columns.{ours}{joined}{shlex.quote(theirs)}")
    return " ".join(flags)


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
