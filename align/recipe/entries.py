"""The runs of a recipe, and what of its file each of them takes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from align.ground.json import Json
from align.recipe.document import Document
from align.recipe.effect import reason
from align.recipe.mixture import handed
from align.recipe.settings import Settings, StageConfig, files_of
from align.recipe.sweep import KEY, filled
from align.recipe.telling import problems as words

DIGEST = re.compile(r"[0-9a-f]{8,64}", re.ASCII)

Known = Callable[[str, object], bool]
"""Whether an artifact has a name in the store at a place, None for the default one."""


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


def unknown(_: Entry) -> None:
    """The kind of a run's parent, before the store is known."""


class Takers:
    """Which stages take each setting that stands beside `stages`."""

    def __init__(self, defaults: Json) -> None:
        self.paths = [*_written(defaults)]
        self.runs: list[tuple[Entry, list[words.Path]]] = []
        """Every run of a stage, and what reaches it."""

    def note(self, run: Entry, defaults: Json, own: Json) -> None:
        """A run of a stage, and which of the defaults reach it beside its own settings."""
        self.runs.append((run, [path for path in self.paths if reaches(path, type(run.config), defaults, own)]))

    def stages(self, parent: Callable[[Entry], str | None]) -> dict[words.Path, dict[str, str]]:
        """By path and stage why it has no effect there; empty where it has, and one run that it has an effect on is
        enough. `parent`: the kind of artifact that a run's parent is, where that is known."""
        found: dict[words.Path, dict[str, str]] = {path: {} for path in self.paths}
        for run, reached in self.runs:
            why = run.config.without_effect(parent(run))
            for path in reached:
                idle = reason(path, why) or ""
                found[path][run.stage] = found[path].get(run.stage, idle) and idle
        return found

    def of(self, path: words.Path) -> set[str]:
        """The stages that take what is written at `path`, a setting or a group."""
        below = [stages for at, stages in self.stages(unknown).items() if at[: len(path)] == path]
        return {stage for stages in below for stage, why in stages.items() if not why}

    def untaken(self, parent: Callable[[Entry], str | None] = unknown) -> Iterator[tuple[words.Path, str]]:
        """What no stage takes, and a sentence on why; `parent` as in `stages`."""
        for path, stages in self.stages(parent).items():
            name = ".".join(path)
            theirs = "has a base of its own, or a parent, which is on one" if path[0] == "base" else "sets its own"
            if stages and all(stages.values()):
                yield path, f"{name} has no effect in any stage: {next(iter(stages.values()))}"
            elif not stages:
                yield path, f"{name}: no stage takes it, as each that has it {theirs}. Remove it, or set it there."


def _written(defaults: Json, at: words.Path = ()) -> Iterator[words.Path]:
    """Where settings are written, those of a group one by one; a sweep is one."""
    for key, value in defaults.items():
        if isinstance(value, dict) and value and KEY not in value:
            yield from _written(value, (*at, str(key)))
        else:
            yield (*at, str(key))


@dataclass(frozen=True)
class Recipe:
    """A pipeline: its stages in the order of the file, which is the order they run in."""

    name: str
    document: Document
    stages: Mapping[str, Entry]
    takers: Takers

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


def as_written(
    document: Document,
    stage: str,
    config: type[Settings],
    defaults: Collection[str],
    chosen: Mapping[words.Path, object],
) -> Json:
    """A stage's settings as they stand in the file, without what --set says, over the defaults of these names; `chosen`
    in the place of sweeps."""
    written: dict[str, Any] = document.written
    stages = written["stages"] if isinstance(written.get("stages"), dict) else {}
    own = {key: value for key, value in (stages.get(stage) or {}).items() if key != "kind"}
    general = filled({key: value for key, value in written.items() if key in defaults}, chosen)
    return laid_over(config, general, filled(own, chosen, ("stages", stage)))


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
        why = config.model_validate(given).without_effect(None)
    except ValidationError:
        return True
    return reason(path, why) is None


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


def wrong_input(target: str, stage: str, order: list[str], is_ref: bool, is_known: Callable[[str], bool]) -> str | None:
    """Why a stage cannot name this one, in words; None where it can, or where it means something else, as a name that
    `is_known` to the store does."""
    if target == stage:
        return "is this stage itself; name an earlier one."
    earlier = order[: order.index(stage)]
    if target in order:
        return None if target in earlier else f"comes later; move {target} above {stage}."
    file, _, weight = target.rpartition("=")
    if not is_ref and file in order:
        return f"is how a command line says it; here it is {{file: {file}, weight: {weight}}}."
    if not is_ref or _is_artifact(target) or is_known(target):
        return None
    guess = words.nearest(target, earlier)  # what is like none may be a name of the store
    return f"is not an earlier stage of this recipe; did you mean {guess}?" if guess else None


def _is_artifact(text: str) -> bool:
    """Whether a name means the store (or a folder) and not a stage."""
    return "/" in text or text.startswith((".", "~")) or bool(DIGEST.fullmatch(text))
