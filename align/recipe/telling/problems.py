"""What is wrong with given settings, in words: what was found, what was expected, the nearest known key."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from align.recipe.mixture import MixedFile
from align.recipe.settings import Settings
from align.recipe.telling import elsewhere
from align.recipe.telling.meaning import meaning

Path = tuple[str, ...]
"""Keys from the outside in."""

KINDS: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    MixedFile: "FILE=WEIGHT",
}
LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
FAR = 1_000_000
"""An upper limit from here on is told only to who goes beyond it."""


def alternatives(annotation: object) -> list[object]:
    """The members of a union, `Annotated` wrappers with limits kept, else the annotation alone."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in alternatives(member)]
    return [annotation]


def bare(annotation: object) -> object:
    """The type inside `Annotated`."""
    return bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def group_of(field: FieldInfo) -> type[Settings] | None:
    """The group of settings that a field holds, if it holds one."""
    types_ = (bare(member) for member in alternatives(field.annotation))
    return next((t for t in types_ if isinstance(t, type) and issubclass(t, Settings)), None)


def holds(config: type[Settings], dotted: str) -> bool:
    """Whether a setting, or a group of them, is one of a config's, and the one that others call so."""
    if dotted in {*getattr(config, "apart", ()), *getattr(config, "unread", ())}:
        return False
    group: type[Settings] | None = config
    for key in dotted.split("."):
        field = group.model_fields.get(key) if group else None
        if field is None:
            return False
        group = group_of(field)
    return True


def expected(field: FieldInfo) -> str:
    """What may stand in a field, in words: "a whole number above 0 or null"."""
    whole = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    kinds = [kind for kind in alternatives(field.annotation) if get_origin(kind) is not tuple]  # a mixture's text says
    parts = kinds if len(kinds) > 1 else [whole if len(kinds) == len(alternatives(field.annotation)) else kinds[0]]
    return _or(word for part in parts for word in _choices(part))


def _choices(annotation: object) -> list[str]:
    """The values of a `Literal` one by one, or any other type in words."""
    return list(map(str, get_args(annotation))) if get_origin(annotation) is Literal else [_words(annotation)]


def _or(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _words(annotation: object) -> str:
    kind = bare(annotation)
    if kind is type(None):
        return "null"
    if get_origin(kind) is list:
        some = any(getattr(bound, "min_length", 0) for bound in _bounds(annotation))
        return f"a list of {'at least one ' if some else ''}{_words(get_args(kind)[0])}"
    if get_origin(kind) is Literal:
        return _or(map(str, get_args(kind)))
    if get_origin(kind) is dict:
        return f"a mapping of names to {_or(map(_words, alternatives(get_args(kind)[1])))}"
    if isinstance(kind, type) and issubclass(kind, Settings):
        return f"a mapping with {', '.join(kind.model_fields)}" + (" (or text)" if kind.shorthand else "")
    words = KINDS.get(kind, str(kind))
    there = [(name, getattr(bound, name)) for bound in _bounds(annotation) for name in LIMITS if hasattr(bound, name)]
    said = [(name, limit) for name, limit in there if name != "le" or limit < FAR]
    limits = " and ".join(f"{LIMITS[name]} {plain(limit)}" for name, limit in said)
    return f"{words} {'of ' if limits.startswith('at') else ''}{limits}".rstrip()


def _bounds(annotation: object) -> list[object]:
    """What `Annotated` says about a type, one by one, the wrapped type's own first."""
    if get_origin(annotation) is not Annotated:
        return []
    wrapped, *metadata = get_args(annotation)
    own = [bound for item in metadata for bound in getattr(item, "metadata", [item])]
    return _bounds(wrapped) + own


def plain(value: object) -> str:
    """A value as YAML would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {plain(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(plain, value))}]"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def found(value: object) -> str:
    """A value as it was found: true, 3, the text "abc", a list, a mapping, null."""
    if isinstance(value, float) and value.is_integer():
        return repr(value)  # 1000.0, which is no whole number
    if value is None or isinstance(value, bool | int | float):
        return _short(plain(value))
    if isinstance(value, str):
        return f'the text "{_short(value)}"' if value else "an empty text"
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    return f"a {type(value).__name__}"


RENAMED = {"lora": "adapter"}
"""Groups of settings that older recipes call otherwise."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    group, dot, rest = name.partition(".")
    now, names = f"{RENAMED.get(group, group)}{dot}{rest}", list(known)
    return now if now in names else next(iter(difflib.get_close_matches(now, names, 1, 0.65)), None)


def meant(config: type[Settings], value: object) -> str | None:
    """The one setting of a config that has this word among its values."""
    names = [
        name
        for name, field in config.model_fields.items()
        if isinstance(value, str) and any(value in get_args(kind) for kind in alternatives(field.annotation))
    ]
    return names[0] if len(names) == 1 else None


def written_out(field: FieldInfo, key: str, value: object, spell: Callable[[str], str]) -> str:
    """How a group is given that has this word among the values of one of its settings, or what another tool means by
    the word; "" for others."""
    group = group_of(field)
    own = meant(group, value) if group else None
    if group and own:
        nothing = ", or nothing: it is the default" if group.model_fields[own].default == value else ""
        return f" Write {{{own}: {value}}}{nothing}."
    theirs = elsewhere.of_value(key, str(value), spell) if group else None
    return f" {theirs}" if theirs else ""


def only_maps(field: FieldInfo) -> bool:
    """Whether all that a setting takes is names with a value each."""
    kinds = [kind for kind in map(bare, alternatives(field.annotation)) if kind is not type(None)]
    return all(get_origin(kind) is dict for kind in kinds)


def named(field: FieldInfo, key: str, value: object) -> str:
    """Of a mapping, how one plain value of it is given; "" for other settings and values."""
    if not only_maps(field) or not isinstance(value, str | int | float):
        return ""
    way = f"{key}.NAME {value}" if key.startswith("--") else f"{key}: {{NAME: {value}}}"
    return f" Give each a name: {way}."


def nearly(field: FieldInfo, value: object) -> str:
    """Whether one of the words that a setting takes was meant; "" where none is nearly it."""
    kinds = [inner for kind in alternatives(field.annotation) for inner in (kind, *get_args(kind))]
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    near = difflib.get_close_matches(value, words, 1, 0.82) if isinstance(value, str) and "," not in value else []
    return f" Did you mean {near[0]}?" if near else ""


def problems(
    config: type[Settings], given: Mapping[str, object], owner: str, name: Callable[[Path], str]
) -> list[tuple[Path, str]]:
    """Everything that is wrong with `given` as a `config`: (keys, sentence). `name` spells a key, `owner` says whose
    settings they are."""
    try:
        config.model_validate(dict(given))
        return []
    except ValidationError as error:
        details = error.errors(include_url=False)

    def spell(ours: str) -> str:
        return name(tuple(ours.split(".")))

    out: dict[tuple[Path, str], None] = {}
    for detail in details:
        path, group, field, value = _locate(config, given, detail["loc"])
        if detail["type"] in ("extra_forbidden", "invalid_key"):
            guess = nearest(path[-1], group.model_fields)
            remedy = f"did you mean {guess}?" if guess else f"it has {', '.join(group.model_fields)}."
            has = partial(holds, config)
            own = getattr(config, "strangers", {}).get(path[-1]) if len(path) == 1 else None
            theirs = own or elsewhere.hint(path[-1], has, spell, detail["input"])
            remedy = theirs or remedy
            whose = path[-2] if len(path) > 1 else owner
            text = f"{name(path)} is not a setting of {whose}; {remedy}"
        elif detail["type"] == "missing" and field is not None:
            text = f"{name(path)} is missing; {owner} needs it: {_sentence(meaning(group, path[-1]))}"
        elif detail["type"] == "value_error":
            whose = f"{name(path)}: " if path else ""
            text = "\n".join(f"{whose}{line}" for line in str(detail["ctx"]["error"]).splitlines())
        elif isinstance(value, str) and any(
            other["type"] == "value_error" and other["loc"][: len(path)] == detail["loc"][: len(path)]
            for other in details
        ):
            continue  # of the ways to fill a setting, the one that says more has said it
        elif field is not None:
            part = detail["input"] is not value and len(detail["loc"]) > len(path)
            inside, begin = part and isinstance(value, list | Mapping), detail["loc"][: len(path)]
            if (
                isinstance(value, list)
                and not inside
                and any(other["loc"][: len(path)] == begin and other["input"] is not value for other in details)
            ):
                continue  # of the ways to fill a setting, the one that the list is meant to be says more
            wrong = f"{found(detail['input'])} in it" if inside else found(value)
            other = meant(group, value) if group_of(field) else None
            hint = f" Did you mean {name((*path[:-1], other))}, which takes it?" if other else ""
            most = detail.get("ctx", {}).get("le", 0)
            limit = f", at most {most:,.10g}" if most >= FAR else ""
            hint = hint or written_out(field, path[-1], value, spell)
            hint = hint or nearly(field, detail["input"]) or named(field, name(path), value)
            text = f"{name(path)}: expected {expected(field)}{limit}, found {wrong}.{hint}"
        else:
            text = f"{owner}: expected a mapping, found {found(value)}."
        out |= {(path, line): None for line in text.splitlines()}
    # Pydantic looks at values together only when each is right alone; all is to be told in one go.
    if not any(detail["type"] == "value_error" for detail in details):
        out |= {((), text): None for text in config.conflicts(given)}
    return list(out)


def but_meant(
    wrong: Iterable[tuple[Path, str]], config: type[Settings], given: Iterable[str]
) -> list[tuple[Path, str]]:
    """The problems, but for settings said to be missing that one of the names that were `given` is another tool's for:
    its own problem says what it is here."""
    strange = [name for name in given if name not in config.model_fields]
    meant = {ours.partition(".")[0] for name in strange for ours in elsewhere.ours(name, partial(holds, config))}
    needs = getattr(config, "needs_one_of", {})
    told = {text for names, text in needs.items() if meant & {*names}}
    return [
        (path, text)
        for path, text in wrong
        if text not in told and not (path[:1] and path[0] in meant and " is missing; " in text)
    ]


def _locate(
    config: type[Settings], given: object, loc: tuple[int | str, ...]
) -> tuple[Path, type[Settings], FieldInfo | None, object]:
    """(keys down to the setting, its group, its field, the value found there); what comes after a setting in pydantic's
    path is its own."""
    path: Path = ()
    field = None
    for part in map(str, loc):
        if isinstance(given, str) and config.shorthand:
            given = {config.shorthand: given}
        path, field = (*path, part), config.model_fields.get(part)
        given = given.get(part) if isinstance(given, Mapping) else None
        inner = group_of(field) if field else None
        if inner is None or not isinstance(given, str | Mapping) or len(path) == len(loc):
            break
        config = inner
    return path, config, field, given


def _sentence(text: str) -> str:
    """The first sentence of a docstring, lower case where it opens with an ordinary word."""
    first = re.split(r"(?<=[.:;]) ", " ".join(text.split()))[0].rstrip(".:;") + "."
    return first[:1].lower() + first[1:] if first.split()[0].istitle() else first
