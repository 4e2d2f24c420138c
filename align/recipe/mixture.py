"""Several files as one data set: `data: [{file: a.jsonl, weight: 0.7}, {file: b.jsonl, epochs: 2, limit: 5000}]`.

`weight` is a file's share of a pass, `epochs` how often each of its records stands in a pass, `limit` how many of its
records are drawn; `columns` is what it calls our keys, over what the setting `columns` says for all. A file may stand
alone, as a text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from align.ground.json import Json
from align.recipe.hub_data import spelled
from align.recipe.settings import File, Settings, files_of
from align.store.remote.address import secrets, without


@dataclass(frozen=True)
class MixedFile:
    """One file of a data set, and how much of it is taken in each pass."""

    file: str
    weight: float | None = None
    epochs: float | None = None
    limit: int | None = None
    columns: dict[str, str] | None = None

    @property
    def told(self) -> str:
        """The file as messages may have it: a URL without its secrets."""
        return without(secrets(self.file), self.file)

    def settings(self) -> Json:
        """What is set of it beside its file."""
        return {name: value for name, value in asdict(self).items() if name != "file" and value is not None}


KEYS = tuple(field.name for field in fields(MixedFile))
Files = Annotated[list[File], Field(min_length=1), BeforeValidator(lambda value: _items(value))]
"""Files that are read one after the other, each as a whole; one may stand alone."""


def sources(value: object) -> object:
    """A list of files as sources; anything else as it is. Raises: ValueError, a sentence for each problem."""
    if isinstance(value, Mapping) and "file" in value:
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    found: list[MixedFile] = []
    problems: list[str] = []
    for i, item in enumerate(value, 1):
        try:
            found.append(_source(f"file {i}", item))
        except ValueError as error:
            problems.append(str(error))
    problems = problems or [*_problems(tuple(found))]
    if problems:
        raise ValueError("\n".join(problems))
    return tuple(found)


def weighed(value: object) -> object:
    """`sources` as a list, where FILE=WEIGHT may stand for a file with its weight. Raises: ValueError."""
    found = sources([_with_weight(item) for item in _items(value)])
    return [*found] if isinstance(found, tuple) else found


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else [value]


def _with_weight(item: object) -> object:
    file, _, weight = item.rpartition("=") if isinstance(item, str) else ("", "", "")
    if not file:
        return item
    try:
        return {"file": file, "weight": float(weight)}
    except ValueError:
        raise ValueError(f"{item}: expected FILE=WEIGHT, such as a.jsonl=0.7.") from None


def _source(which: str, item: object) -> MixedFile:
    """Raises: ValueError for what is no source."""
    if isinstance(item, MixedFile):
        return item
    if not isinstance(item, Mapping) or "hub" in item:
        item = {"file": item}
    unknown = [str(key) for key in item if key not in KEYS]
    if unknown:
        raise ValueError(f"{which} has {unknown[0]}, which is none of {', '.join(KEYS)}.")
    file = spelled(item.get("file"))
    if not (isinstance(file, str) and file):
        raise ValueError(f"{which} names no file. Expected one such as {{file: a.jsonl, weight: 0.7}}.")
    more: dict[str, Any] = {key: item[key] for key in KEYS[1:] if item.get(key) is not None}
    columns = more.pop("columns", {})
    if not isinstance(columns, Mapping) or not all(isinstance(n, str) and n for n in (*columns, *columns.values())):
        raise ValueError(f"{file}: columns is {columns}; expected our keys and what the file calls them.")
    for key, number in more.items():
        kinds = int if key == "limit" else int | float
        if not isinstance(number, kinds) or isinstance(number, bool) or not 0 < number < math.inf:
            whole = "whole " if key == "limit" else ""
            raise ValueError(f"{file}: {key} is {number}; expected a {whole}number above 0.")
    return MixedFile(file, **more, columns=dict(columns) or None)


def _problems(found: tuple[MixedFile, ...]) -> Iterator[str]:
    """What is wrong with sources together."""
    if not found:
        yield "the list is empty. Name at least one file."
    names = [source.file for source in found]
    yield from (f"{file} is named twice. Name it once." for file in dict.fromkeys(names) if names.count(file) > 1)
    weighed = [source for source in found if source.weight is not None]
    for source in weighed:
        if source.epochs is not None or source.limit is not None:
            more = "epochs" if source.epochs is not None else "limit"
            yield f"{source.file}: weight and {more} both say how many of its records a pass takes. Keep one of them."
    if len(found) == 1 and weighed:
        yield f"{names[0]}: weight has no effect: it is the only file. Leave it out."
    elif 0 < len(weighed) < len(found) and sum(source.weight or 0.0 for source in weighed) >= 1.0:
        others = ", ".join(source.file for source in found if source.weight is None)
        yield f"the weights come to 1 or more, which leaves no share for {others}. Lower them, or weigh all files."


def named_files(config: Settings) -> dict[str, str]:
    """The data files that are set, by the setting; where it holds several, by setting and number: data/1, data/2."""
    found: dict[str, str] = {}
    for name in files_of(config):
        value = getattr(config, name) or ()
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(one, str):
            found[name] = one
        else:
            found |= {f"{name}/{i}": _file(item) for i, item in enumerate(value, 1)}
    return found


def mixed_file(config: Settings, name: str) -> MixedFile | None:
    """The file of a mixture that `named_files` calls so."""
    setting, _, place = name.partition("/")
    item = getattr(config, setting)[int(place) - 1] if place else None
    return item if isinstance(item, MixedFile) else None


def mixtures_of(config: Settings) -> dict[str, list[Json]]:
    """What is set of the files of each mixture, by the setting."""
    values = {name: getattr(config, name) for name in files_of(config)}
    several = {name: value for name, value in values.items() if isinstance(value, list | tuple)}
    return {
        name: [source.settings() for source in value]
        for name, value in several.items()
        if any(isinstance(source, MixedFile) for source in value)
    }


def _file(item: str | MixedFile) -> str:
    return item.file if isinstance(item, MixedFile) else item


def handed(value: object, made: Mapping[str, str]) -> object:
    """A setting that names stages, with what they made in their place."""
    if isinstance(value, list | tuple):
        return type(value)(handed(item, made) for item in value)
    if isinstance(value, MixedFile):
        return replace(value, file=made.get(value.file, value.file))
    return made.get(value, value) if isinstance(value, str) else value
