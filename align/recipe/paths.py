"""Paths in settings: relative to the file that holds them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

from align.ground.json import Json
from align.recipe.hub_data import is_meant
from align.recipe.settings import IsFile, IsModel, IsPath, IsRef, IsTemplate, Settings, markers
from align.recipe.telling import problems as words


def relative_to(folder: Path, config: type[Settings], given: Json, stages: Sequence[str] = ()) -> Json:
    """Given settings, their paths relative to `folder`. What names a stage, an artifact or a model of the hub stays as
    it is."""
    out = dict(given)
    for key, value in given.items():
        field = config.model_fields.get(key)
        if field is None:
            continue
        group = words.group_of(field)
        if group is not None:
            inner = {group.shorthand: value} if isinstance(value, str) and group.shorthand else value
            out[key] = relative_to(folder, group, inner, stages) if isinstance(inner, dict) else value
            continue
        marks = markers(field) & {IsFile, IsPath, IsTemplate, IsRef, IsModel}
        if not marks:
            continue
        literals = [kind for kind in words.alternatives(field.annotation) if get_origin(kind) is Literal]
        names = {*stages, *(name for kind in literals for name in get_args(kind))}
        if isinstance(value, list):
            out[key] = [_moved(folder, inner, marks, names) for inner in value]
        elif isinstance(value, dict) and not (IsFile in marks and "hub" in value):
            out[key] = {name: _moved(folder, inner, marks, names) for name, inner in value.items()}
        else:
            out[key] = _moved(folder, value, marks, names)
    return out


def _moved(folder: Path, text: object, marks: set[type], names: set[str]) -> object:
    """A path relative to `folder`, also as the file of a mixture; anything else as it is, and so what is one of the
    `names`."""
    if isinstance(text, dict) and "file" in text:
        return {**text, "file": _moved(folder, text["file"], marks, names)}
    if not isinstance(text, str) or text in names:
        return text
    looks_like_path = text.startswith((".", "/", "~"))
    if IsFile in marks:
        if "://" in text:
            return text
        is_path = (bool(Path(text).suffix) and not is_meant(text)) or "*" in text
        looks_like_path |= is_path or os.path.exists(folder / text)
    if IsTemplate in marks:
        looks_like_path |= bool(Path(text).suffix) or os.path.isfile(folder / text)
    if IsRef in marks or IsModel in marks:
        looks_like_path |= os.path.isdir(folder / text)
    if IsPath in marks:
        looks_like_path = True
    return os.path.normpath(folder / os.path.expanduser(text)) if looks_like_path else text
