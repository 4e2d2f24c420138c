"""Fields of settings: their keys, what may stand in them, and the value that a word of the command line spells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.recipe.settings import Settings
from align.recipe.telling import problems as words


def leaves(config: type[Settings], prefix: words.Path = ()) -> Iterator[tuple[words.Path, FieldInfo]]:
    """(keys, field) of every setting, those inside groups too."""
    for name, field in config.model_fields.items():
        group = words.group_of(field)
        if group is None:
            yield (*prefix, name), field
        else:
            yield from leaves(group, (*prefix, name))


def spellings(config: type[Settings], fields: dict[words.Path, FieldInfo]) -> dict[str, words.Path]:
    """Flag -> keys: whole keys, last parts that only one key has, and groups that a plain value stands for."""
    ends = Counter(path[-1] for path in fields)
    flags = {path[-1]: path for path in fields if ends[path[-1]] == 1}
    for name, field in config.model_fields.items():
        group = words.group_of(field)
        flags.pop(name, None)
        if group is not None and group.shorthand:
            flags[name] = (name, group.shorthand)
    return flags | {".".join(path): path for path in fields}


def members(field: FieldInfo) -> list[object]:
    """The types that may stand in a field."""
    return [words.bare(member) for member in words.alternatives(field.annotation)]


def is_list(field: FieldInfo) -> bool:
    return any(get_origin(member) is list for member in members(field))


def is_mapping(field: FieldInfo) -> bool:
    return any(get_origin(member) is dict for member in members(field))


def maps_to_text(field: FieldInfo) -> bool:
    mappings = [member for member in members(field) if get_origin(member) is dict]
    return any(words.bare(get_args(mapping)[1]) is str for mapping in mappings)


def is_switch(field: FieldInfo) -> bool:
    return bool in members(field)


def literals(field: FieldInfo) -> list[object]:
    kinds = [member for member in members(field) if get_origin(member) is Literal]
    return [value for kind in kinds for value in get_args(kind)]


def spelt(field: FieldInfo, text: str) -> object:
    """A word of the command line as the value it spells: text where text is wanted and it is not the number that may
    stand there too, else a YAML scalar."""
    kinds = members(field)
    if text == "null" and type(None) in kinds:
        return None
    if {str, float} <= {*kinds}:
        with suppress(ValueError):
            return float(text)
    if str in kinds or text in literals(field):
        return text
    try:
        value: object = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError):
        return text
    whole = int in kinds and float not in kinds
    return text if whole and isinstance(value, float) else value  # told as it was typed
