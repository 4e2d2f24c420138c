"""The runs of a recipe, and what of its file each of them takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from align.ground.json import Json
from align.recipe.document import Document
from align.recipe.mixture import handed
from align.recipe.settings import Settings, StageConfig, files_of
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

    def bind(self, refs: Mapping[str, str], data: Mapping[str, str] | None = None) -> StageConfig:
        """The config with the names of earlier stages replaced by the refs of what they made, and in settings that hold
        files by those in `data`."""
        files = files_of(self.config)
        made = {key: data if data is not None and key in files else refs for key in self.inputs}
        return self.config.model_copy(
            update={key: handed(getattr(self.config, key), names) for key, names in made.items()}
        )


@dataclass(frozen=True)
class Recipe:
    """A pipeline: its stages in the order of the file, which is the order they run in."""

    name: str
    document: Document
    stages: Mapping[str, Entry]

    @property
    def path(self) -> Path:
        return self.document.path

    def setting(self, stage: str, path: words.Path) -> str:
        """A setting of a stage as it is written, behind its line: "study.yaml:14: stages.dpo.parent"."""
        at = self.document.origin(stage, path)
        return f"{self.document.where(at)}: {'.'.join(at)}"

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
    return config.listed(out)


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
        return [item for inner in value for item in _each(inner, runs)]
    return runs[value][0] if isinstance(value, str) and value in runs else value


def _each(item: object, runs: Mapping[str, tuple[str, ...]]) -> Sequence[object]:
    """What stands for an item of a list: the names of the runs of a stage, or a file of a mixture once for each."""
    if isinstance(item, Mapping) and item.get("file") in runs:
        return [{**item, "file": name} for name in runs[item["file"]]]
    return runs.get(item, (item,)) if isinstance(item, str) else (item,)


def stage_as_base(
    given: Json, stages: Sequence[str], spell: Callable[[words.Path], str]
) -> list[tuple[words.Path, str]]:
    """What is wrong where a base is called as a stage, whose turn comes once it is a parent."""
    base = given.get("base")
    model = base.get("model") if isinstance(base, dict) else base
    if not isinstance(model, str) or model not in stages or os.path.isdir(model):
        return []
    text = (
        f"{spell(('base',))}: {model} is a stage of this recipe, and a stage goes under parent. Write parent: {model}."
    )
    return [(("base",), text)]
