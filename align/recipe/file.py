"""Recipes: one YAML 1.2 file that names stages, read strictly. Every problem of a recipe is told in one go, with its
line.

    name: helpful
    base: {model: meta-llama/Llama-3.1-8B, quantize: nf4}
    stages:
      sft: {data: dolly.jsonl}
      dpo: {parent: sft, data: pairs.jsonl, beta: 0.1}

What stands beside `stages` is a default for every stage where it has effect. A stage may name an earlier one; `kind`
defaults to its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.ground.errors import InputError
from align.recipe import elsewhere
from align.recipe import problems as words
from align.recipe.document import Document, lay_over, read_yaml
from align.recipe.effect import as_defaults, idle, set_aside
from align.recipe.paths import relative_to
from align.recipe.settings import NAME, IsFile, IsRef, Settings, StageConfig, markers

DIGEST = re.compile(r"[0-9a-f]{8,64}", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """One stage of a recipe. `inputs` says which keys name earlier stages, and which."""

    name: str
    kind: str
    config: StageConfig
    inputs: Mapping[str, tuple[str, ...]]

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


def load_recipe(path: str | Path, kinds: Mapping[str, type[StageConfig]], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, `overrides` such as "stages.dpo.beta=0.2" laid over it.

    Args:
        kinds: the settings of every kind of stage.
    Raises: InputError with a line for each problem.
    """
    document = read_yaml(path)
    for override in overrides:
        lay_over(document, override)
    return _Reader(document, kinds).recipe()


class _Reader:
    """One recipe on its way from values to stages; problems are gathered and told at the end."""

    def __init__(self, document: Document, kinds: Mapping[str, type[StageConfig]]) -> None:
        self.document = document
        self.kinds = kinds
        self.found: dict[str, None] = {}

    def problem(self, path: words.Path, text: str) -> None:
        self.found[f"{self.document.where(path)}: {text}"] = None

    def line(self, problem: str) -> int:
        """Where a problem stands, for reading order; what --set says comes first."""
        number = problem.removeprefix(f"{self.document.path}:").partition(":")[0]
        return int(number) if number.isdigit() else 0

    def recipe(self) -> Recipe:
        values, path = self.document.values, self.document.path
        name = values.get("name", path.stem)
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            self.problem(("name",), f"name: expected letters, digits, '.', '_' and '-', found {words.found(name)}.")
        bodies = values.get("stages")
        if not isinstance(bodies, dict) or not bodies:
            what = f"found {words.found(bodies)}" if "stages" in values else "found none"
            self.problem(
                ("stages",),
                f"stages: expected a mapping of at least one stage, such as `sft: {{data: sft.jsonl}}`; {what}.",
            )
            bodies = {}
        defaults = {key: value for key, value in values.items() if key not in ("name", "stages")}
        found = {stage: self.kind(stage, body) for stage, body in bodies.items()}
        kinds = {stage: kind for stage, kind in found.items() if kind}
        self.check_defaults(defaults, set(kinds.values()) or set(self.kinds))
        names = [stage for stage in bodies if isinstance(stage, str)]
        entries = {s: self.entry(str(name), s, kind, bodies[s] or {}, defaults, names) for s, kind in kinds.items()}
        if self.found:
            raise InputError("\n".join(sorted(self.found, key=self.line)))
        return Recipe(str(name), path, {stage: entry for stage, entry in entries.items() if entry})

    def kind(self, stage: Any, body: object) -> str | None:
        """The kind of a stage; None where there is a problem with it."""
        at = ("stages", stage)
        if not (isinstance(stage, str) and NAME.fullmatch(stage)):
            found = words.found(stage)
            self.problem(at, f"stages: the name of a stage has letters, digits, '.', '_' and '-'; found {found}.")
            return None
        if not isinstance(body, dict | None):
            self.problem(at, f"stages.{stage}: expected a mapping of settings, found {words.found(body)}.")
            return None
        own = body or {}
        kind = own.get("kind", stage)
        if isinstance(kind, str) and kind in self.kinds:
            return kind
        said = f"stages.{stage}.kind: {words.found(kind)}" if "kind" in own else f"stages.{stage}: {stage}"
        guess = words.nearest(str(kind), self.kinds)
        hint = f"did you mean {guess}?" if guess else f"add `kind:` with one of {', '.join(self.kinds)}."
        self.problem((*at, "kind"), f"{said} is not a kind of stage; {hint}")
        return None

    def check_defaults(self, defaults: Mapping[str, object], kinds: set[str]) -> None:
        configs = [self.kinds[kind] for kind in kinds]
        known = {key for config in configs for key in config.model_fields} - {"name"}

        def has(name: str) -> bool:
            return any(words.holds(config, name) for config in configs)

        for key in defaults:
            if key not in known:
                guess = words.nearest(str(key), known | {"name", "stages"})
                near = f"did you mean {guess}?" if guess else "remove it."
                remedy = elsewhere.hint(str(key), has) or near
                self.problem((key,), f"{key} is not a setting of any stage here; {remedy}")

    def entry(
        self, recipe: str, name: str, kind: str, body: dict[str, object], defaults: dict[str, object], order: list[str]
    ) -> Entry | None:
        config = self.kinds[kind]
        own = {key: value for key, value in body.items() if key != "kind"}
        if "name" in own:
            at = ("stages", name, "name")
            self.problem(at, f"stages.{name}.name: in a recipe a stage is named by its key; remove it.")
            del own["name"]
        usable = {key: value for key, value in defaults.items() if key in config.model_fields}
        if own.get("parent") is not None:
            usable.pop("base", None)
        given = _laid_over(config, usable, own)
        earlier = order[: order.index(name)]
        inputs = self.inputs(config, given, name, order)
        given = relative_to(self.document.path.parent, config, given, order)

        def spell(path: words.Path) -> str:
            return ".".join(self.origin(name, path))

        wrong = words.problems(config, given, kind, spell)
        settings = None
        if not wrong:
            settings = config.model_validate({**given, "name": f"{recipe}/{name}"})
            as_defaults(settings, usable, own)
            wrong = self.idle(name, settings, spell)
        for path, text in wrong:
            self.problem(self.origin(name, path), text if path else f"stages.{name}: {text}")
        later = [target for targets in inputs.values() for target in targets if target not in earlier]
        if settings is None or wrong or later:
            return None
        return Entry(name, kind, settings, inputs)

    def idle(
        self, stage: str, settings: StageConfig, spell: Callable[[words.Path], str]
    ) -> list[tuple[words.Path, str]]:
        """Settings of a stage without effect. Those of the file that --set laid something over give way to it."""
        lines = self.document.lines
        own = [path for path in lines if path[:2] == ("stages", stage)]
        laid_over = {path for path in own if lines[path].startswith("--set")}
        found = []
        for path, text in idle(settings, None, spell):
            if laid_over and ("stages", stage, *path) not in laid_over:
                set_aside(settings, path)
            else:
                found.append((path, text))
        return found

    def origin(self, stage: str, path: words.Path) -> words.Path:
        """Where a setting of a stage is written: with the stage, or among the defaults."""
        lines = self.document.lines
        own = ("stages", stage, *path)
        is_own = any(own[: 2 + n] in lines for n in range(1, len(path) + 1))
        is_default = bool(path) and path[:1] in lines and not is_own
        return path if is_default else own

    def inputs(
        self, config: type[Settings], given: Mapping[str, object], stage: str, order: list[str]
    ) -> dict[str, tuple[str, ...]]:
        """Which keys name stages; a problem for one that is not earlier, or that is nothing at all."""
        out: dict[str, tuple[str, ...]] = {}
        for key, value in given.items():
            field = config.model_fields.get(key)
            marks = markers(field) & {IsFile, IsRef} if field else None
            if not marks:
                continue
            at = self.origin(stage, (key,))
            values = value if isinstance(value, list) else [value]
            targets = [v for v in values if isinstance(v, str)]
            for target in targets:
                wrong = self.wrong_input(target, stage, order, IsRef in marks)
                if wrong:
                    self.problem(at, f"{'.'.join(at)}: {target} {wrong}")
            named = tuple(target for target in targets if target in order)
            if named:
                out[key] = named
        return out

    def wrong_input(self, target: str, stage: str, order: list[str], is_ref: bool) -> str | None:
        """Why a stage cannot name this one, in words; None where it can, or where it means something else."""
        if target == stage:
            return "is this stage itself; name an earlier one."
        earlier = order[: order.index(stage)]
        if target in order:
            return None if target in earlier else f"comes later; move {target} above {stage}."
        if not is_ref or self.is_artifact(target):
            return None
        guess = words.nearest(target, earlier)
        hint = "name an earlier stage, or an artifact as RECIPE/STAGE or by its digest."
        return f"is not an earlier stage of this recipe; {f'did you mean {guess}?' if guess else hint}"

    def is_artifact(self, text: str) -> bool:
        """Whether a name means the store (or a folder) and not a stage."""
        return "/" in text or text.startswith((".", "~")) or bool(DIGEST.fullmatch(text))


def _laid_over(config: type[Settings], defaults: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """A stage's own settings over the defaults, group by group; a group that names another model takes nothing from the
    default one."""
    out = {**defaults, **own}
    for key in defaults.keys() & own.keys():
        group = words.group_of(config.model_fields[key])
        general, special = defaults[key], own[key]
        if group and isinstance(general, dict) and isinstance(special, dict) and group.shorthand not in special:
            out[key] = {**general, **special}
    return out
