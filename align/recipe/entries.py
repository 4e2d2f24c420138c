"""The runs of a recipe, and what of its file each of them takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from align.ground.json import Json
from align.recipe.settings import Settings, StageConfig
from align.recipe.telling import problems as words


@dataclass(frozen=True)
class Entry:
    """One run of a stage. `inputs` says which keys name earlier ones, and which."""

    name: str
    kind: str
    config: StageConfig
    inputs: Mapping[str, tuple[str, ...]]
    stage: str
    """Its name in the file, of which a sweep makes several."""

    def bind(self, made: Mapping[str, str]) -> StageConfig:
        """The config with the names of earlier stages replaced by what they made (a digest or a ref)."""
        update: dict[str, object] = {}
        for key in self.inputs:
            value = getattr(self.config, key)
            if isinstance(value, str):
                update[key] = made.get(value, value)
            else:
                update[key] = [made.get(ref, ref) for ref in value]
        return self.config.model_copy(update=update)


@dataclass(frozen=True)
class Recipe:
    """A pipeline: its stages in the order of the file, which is the order they run in."""

    name: str
    path: Path
    stages: Mapping[str, Entry]

    @property
    def is_swept(self) -> bool:
        """Whether a stage runs under another name than its own, as it does for each value of a sweep."""
        return any(entry.name != entry.stage for entry in self.stages.values())


def laid_over(config: type[Settings], defaults: Mapping[str, object], own: Mapping[str, object]) -> Json:
    """A stage's own settings over the defaults, group by group; a group that names another model takes nothing from the
    default one."""
    out = {**defaults, **own}
    for key in defaults.keys() & own.keys():
        group = words.group_of(config.model_fields[key])
        general, special = defaults[key], own[key]
        if group and isinstance(general, dict) and isinstance(special, dict) and group.shorthand not in special:
            out[key] = {**general, **special}
    return out


def reaches(path: words.Path, config: type[Settings], defaults: Json, own: Json) -> bool:
    """Whether a stage takes the default that stands at `path`, and does not set it itself."""
    key, *inner = path
    if key not in defaults or key not in own:
        return key in defaults
    group, special = words.group_of(config.model_fields[key]), own[key]
    if not group or not isinstance(special, dict) or group.shorthand in special:
        return False
    return not inner or inner[0] not in special


def has_effect(path: words.Path, config: type[Settings], given: Json) -> bool:
    """Whether a setting changes what comes out beside the others, as far as that is known without the stage's parent;
    also where the others are wrong."""
    try:
        idle = config.model_validate(given).without_effect(None)
    except ValidationError:
        return True
    return not any(".".join(path[:n]) in idle for n in range(1, len(path) + 1))


def renamed(value: object, runs: Mapping[str, tuple[str, ...]]) -> object:
    """What names stages, with the names of their runs."""
    if isinstance(value, list):
        return [name for inner in value for name in (runs.get(inner, (inner,)) if isinstance(inner, str) else (inner,))]
    return runs[value][0] if isinstance(value, str) and value in runs else value
