"""Recipes: one YAML 1.2 file that names stages, read strictly. Every problem of a recipe is told in one go, with its
line.

name: helpful
base: {model: meta-llama/Llama-3.1-8B, quantize: nf4}      what stands beside `stages` is a default for every stage
where it has effect stages:
  sft: {data: dolly.jsonl}
  dpo: {parent: sft, data: pairs.jsonl, beta: 0.1}         a stage may name an earlier one; `kind` defaults to its name
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLWarning
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from align.ground.errors import InputError
from align.recipe import problems as words
from align.recipe.effect import as_defaults, idle, set_aside
from align.recipe.settings import NAME, IsFile, IsModel, IsPath, IsRef, Settings, StageConfig, markers

RECIPE_LIMIT = 1 << 20
"""Characters of a recipe."""
KEYS_LIMIT = 20_000
"""Keys and list items of a recipe whose aliases are written out."""
DIGEST = re.compile(r"[0-9a-f]{8,64}", re.ASCII)


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe. `inputs` says which keys name earlier stages, and which."""

    name: str
    kind: str
    config: StageConfig
    inputs: Mapping[str, tuple[str, ...]]

    def bind(self, made: Mapping[str, str]) -> object:
        """The config with the names of earlier stages replaced by what they made (a digest or a ref)."""
        update: dict[str, object] = {}
        for key in self.inputs:
            value = getattr(self.config, key)
            update[key] = made.get(value, value) if isinstance(value, str) else [made.get(v, v) for v in value]
        return self.config.model_copy(update=update)


@dataclass(frozen=True)
class Recipe:
    """A pipeline: its stages in the order of the file, which is the order they run in."""

    name: str
    path: Path
    stages: Mapping[str, Stage]


@dataclass
class Document:
    """A parsed YAML file: plain values, and where each of them stands."""

    path: Path
    values: dict[str, object]
    lines: dict[words.Path, str]

    def where(self, path: words.Path) -> str:
        """ "file:line" of the innermost key of `path` that is written somewhere."""
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), str(self.path))


def load_recipe(path: str | Path, kinds: Mapping[str, type[StageConfig]], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, `overrides` such as "stages.dpo.beta=0.2" laid over it.

    Args:
        kinds: the settings of every kind of stage.
    Raises: InputError with a line for each problem.
    """
    document = read_yaml(path)
    for override in overrides:
        _override(document, override)
    return _Reader(document, kinds).recipe()


def read_yaml(path: str | Path) -> Document:
    """A YAML 1.2 file that holds a mapping.

    Raises: InputError naming the line where it cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}. Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}.") from error
    if len(text) > RECIPE_LIMIT:
        raise InputError(f"{path} has {len(text):,} characters; a recipe has at most {RECIPE_LIMIT:,}.")
    lines: dict[words.Path, str] = {}
    with _reading(str(path), "YAML", lines=True):
        _note_lines(YAML(typ="safe", pure=True).compose(text), (), lines, path)
        values = YAML(typ="safe", pure=True).load(text)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {words.found(values)}.")
    if _entries(values) > KEYS_LIMIT:
        raise InputError(f"{path}: with its aliases written out it has more than {KEYS_LIMIT:,} keys and list items.")
    return Document(path, values, lines)


@contextmanager
def _reading(where: str, what: str, *, lines: bool = False) -> Iterator[None]:
    """Tell what keeps a text from being read as YAML. Values that do not fit their tags come from ruamel as plain
    ValueErrors and the like.

    Raises: InputError.
    """
    try:
        with warnings.catch_warnings(action="error"):  # an anchor that is given twice
            yield
    except YAMLError as error:
        raise InputError(f"{where}{_mark(error) if lines else ''}: not {what}: {_reason(error)}.") from error
    except RecursionError as error:
        raise InputError(f"{where}: nested too deeply, or an alias stands inside its own anchor.") from error
    except (ValueError, TypeError, LookupError, AttributeError, YAMLWarning) as error:
        said = " ".join(str(error).replace('"<unicode string>"', where).split())[:300]
        raise InputError(f"{where}: not {what}: {said or type(error).__name__}.") from error


def place(
    config: type[Settings], given: dict[str, object], folder: Path, stages: Sequence[str] = ()
) -> dict[str, object]:
    """The same settings with paths relative to `folder`. What names a stage, an artifact or a model of the hub stays as
    it is."""

    def move(text: object, marks: set[type], literal: Sequence[str]) -> object:
        if not isinstance(text, str) or text in literal or text in stages:
            return text
        looks_like_path = text.startswith((".", "/", "~"))
        if IsFile in marks:
            looks_like_path |= bool(Path(text).suffix) or "*" in text or os.path.exists(folder / text)
        if IsRef in marks or IsModel in marks:
            looks_like_path |= os.path.isdir(folder / text)
        if IsPath in marks:
            looks_like_path = True
        return os.path.normpath(folder / os.path.expanduser(text)) if looks_like_path else text

    out = dict(given)
    for key, value in given.items():
        field = config.model_fields.get(key)
        if field is None:
            continue
        group = words.group_of(field)
        if group is not None:
            inner = {group.shorthand: value} if isinstance(value, str) and group.shorthand else value
            out[key] = place(group, inner, folder, stages) if isinstance(inner, dict) else value
        elif marks := markers(field) & {IsFile, IsPath, IsRef, IsModel}:
            literal = [v for t in words.alternatives(field.annotation) if get_origin(t) is Literal for v in get_args(t)]
            if isinstance(value, list):
                out[key] = [move(v, marks, literal) for v in value]
            elif isinstance(value, dict):
                out[key] = {k: move(v, marks, literal) for k, v in value.items()}
            else:
                out[key] = move(value, marks, literal)
    return out


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
        kinds = {stage: kind for stage, body in bodies.items() if (kind := self.kind(stage, body))}
        self.check_defaults(defaults, set(kinds.values()) or set(self.kinds))
        names = [stage for stage in bodies if isinstance(stage, str)]
        stages = {s: self.stage(str(name), s, kind, bodies[s] or {}, defaults, names) for s, kind in kinds.items()}
        if self.found:
            raise InputError("\n".join(sorted(self.found, key=self.line)))
        return Recipe(name, path, {s: stage for s, stage in stages.items() if stage})

    def kind(self, stage: object, body: object) -> str | None:
        at = ("stages", stage)
        if not (isinstance(stage, str) and NAME.fullmatch(stage)):
            self.problem(
                at, f"stages: the name of a stage has letters, digits, '.', '_' and '-'; found {words.found(stage)}."
            )
        elif not isinstance(body, dict | None):
            self.problem(at, f"stages.{stage}: expected a mapping of settings, found {words.found(body)}.")
        elif not isinstance(kind := (body or {}).get("kind", stage), str) or kind not in self.kinds:
            said = (
                f"stages.{stage}.kind: {words.found(kind)} is not"
                if body and "kind" in body
                else f"stages.{stage}: {stage} is not"
            )
            guess = words.nearest(str(kind), self.kinds)
            hint = f"did you mean {guess}?" if guess else f"add `kind:` with one of {', '.join(self.kinds)}."
            self.problem((*at, "kind"), f"{said} a kind of stage; {hint}")
        else:
            return kind
        return None

    def check_defaults(self, defaults: Mapping[str, object], kinds: set[str]) -> None:
        known = {key for kind in kinds for key in self.kinds[kind].model_fields} - {"name"}
        for key in defaults:
            if key not in known:
                guess = words.nearest(str(key), known | {"name", "stages"})
                self.problem(
                    (key,),
                    f"{key} is not a setting of any stage here; "
                    + (f"did you mean {guess}?" if guess else "remove it."),
                )

    def stage(
        self, recipe: str, name: str, kind: str, body: dict[str, object], defaults: dict[str, object], order: list[str]
    ) -> Stage | None:
        config = self.kinds[kind]
        own = {key: value for key, value in body.items() if key != "kind"}
        if "name" in own:
            self.problem(
                ("stages", name, "name"), f"stages.{name}.name: in a recipe a stage is named by its key; remove it."
            )
            del own["name"]
        usable = {
            k: v
            for k, v in defaults.items()
            if k in config.model_fields and not (k == "base" and own.get("parent") is not None)
        }
        given = _laid_over(config, usable, own)
        earlier = order[: order.index(name)]
        inputs = self.inputs(config, given, name, order)
        given = place(config, given, self.document.path.parent, order)

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
        if settings is None or wrong or any(target not in earlier for targets in inputs.values() for target in targets):
            return None
        return Stage(name, kind, settings, inputs)

    def idle(
        self, stage: str, settings: StageConfig, spell: Callable[[words.Path], str]
    ) -> list[tuple[words.Path, str]]:
        """Settings of a stage without effect. Those of the file that --set laid something over give way to it."""
        laid_over = {
            path: line
            for path, line in self.document.lines.items()
            if line.startswith("--set") and path[:2] == ("stages", stage)
        }
        found = []
        for path, text in idle(settings, None, spell):
            if laid_over and ("stages", stage, *path) not in laid_over:
                set_aside(settings, path)
            else:
                found.append((path, text))
        return found

    def origin(self, stage: str, path: words.Path) -> words.Path:
        """Where a setting of a stage is written: with the stage, or among the defaults."""
        own = ("stages", stage, *path)
        written = any(("stages", stage, *path[:n]) in self.document.lines for n in range(len(path), 1, -1)) or (
            path and own[:3] in self.document.lines
        )
        return own if written or not path or path[:1] not in self.document.lines else path

    def inputs(
        self, config: type[Settings], given: Mapping[str, object], stage: str, order: list[str]
    ) -> dict[str, tuple[str, ...]]:
        """Which keys name stages; a problem for one that is not earlier, or that is nothing at all."""
        out: dict[str, tuple[str, ...]] = {}
        for key, value in given.items():
            field = config.model_fields.get(key)
            if field is None or not (marks := markers(field) & {IsFile, IsRef}):
                continue
            at = self.origin(stage, (key,))
            names = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]
            for target in names:
                if target in order and order.index(target) >= order.index(stage):
                    later = (
                        "is this stage itself; name an earlier one"
                        if target == stage
                        else f"comes later; move {target} above {stage}"
                    )
                    self.problem(at, f"{'.'.join(at)}: {target} {later}.")
                elif target not in order and IsRef in marks and not self.is_artifact(target):
                    guess = words.nearest(target, order[: order.index(stage)])
                    hint = (
                        f"did you mean {guess}?"
                        if guess
                        else "name an earlier stage, or an artifact as RECIPE/STAGE or by its digest."
                    )
                    self.problem(at, f"{'.'.join(at)}: {target} is not an earlier stage of this recipe; {hint}")
            if named := tuple(target for target in names if target in order):
                out[key] = named
        return out

    def is_artifact(self, text: str) -> bool:
        """Whether a name means the store (or a folder) and not a stage."""
        return "/" in text or text.startswith((".", "~")) or bool(DIGEST.fullmatch(text))


def _laid_over(config: type[Settings], defaults: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """A stage's own settings over the defaults, group by group; a group that names another model takes nothing from the
    default one."""
    out = {**defaults, **own}
    for key in defaults.keys() & own.keys():
        group = words.group_of(config.model_fields[key])
        if group and isinstance(defaults[key], dict) and isinstance(own[key], dict) and group.shorthand not in own[key]:
            out[key] = {**defaults[key], **own[key]}
    return out


def _override(document: Document, text: str) -> None:
    """Lay "stages.dpo.beta=0.2" over a document. Raises: InputError."""
    key, equals, value = text.partition("=")
    keys = tuple(key.split("."))
    if not equals or not all(keys):
        raise InputError(f"--set takes KEY=VALUE, such as stages.dpo.beta=0.2; found {words.found(text)}.")
    stages = document.values.get("stages")
    if keys[0] == "stages" and len(keys) > 1 and isinstance(stages, dict) and keys[1] not in stages:
        guess = words.nearest(keys[1], map(str, stages))
        raise InputError(
            f"--set {text}: {keys[1]} is not a stage of this recipe; "
            + (f"did you mean {guess}?" if guess else f"it has {', '.join(stages)}.")
        )
    with _reading(f"--set {text}", "a YAML value"):
        parsed = YAML(typ="safe", pure=True).load(value)
    at = document.values
    for i, part in enumerate(keys[:-1]):
        inner = at.get(part)
        if isinstance(inner, str) and part == "base":
            inner = {"model": inner}
        at[part] = inner = dict(inner) if isinstance(inner, dict) else {}
        document.lines.setdefault(keys[: i + 1], f"--set {text}")
        at = inner
    at[keys[-1]] = parsed
    for path in [path for path in document.lines if path[: len(keys)] == keys]:
        del document.lines[path]
    document.lines[keys] = f"--set {text}"


def _entries(values: object) -> int:
    """How many keys and list items there are when every alias is written out; counting ends beyond the limit, as in a
    circle it must."""
    count, waiting = 0, [values]
    while waiting and count <= KEYS_LIMIT:
        value = waiting.pop()
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        count += len(inner)
        waiting += inner
    return count


def _note_lines(node: Node | None, path: words.Path, lines: dict[words.Path, str], file: Path) -> None:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise InputError(f"{file}:{key.start_mark.line + 1}: a key is a list or a mapping; expected a name.")
            lines[*path, key.value] = f"{file}:{key.start_mark.line + 1}"
            _note_lines(value, (*path, key.value), lines, file)
    elif isinstance(node, SequenceNode):
        for i, value in enumerate(node.value):
            lines[*path, str(i)] = f"{file}:{value.start_mark.line + 1}"


def _mark(error: YAMLError) -> str:
    mark = (error.problem_mark or error.context_mark) if isinstance(error, MarkedYAMLError) else None
    return f":{mark.line + 1}" if mark else ""


def _reason(error: YAMLError) -> str:
    problem = (
        (error.problem or error.context or "") if isinstance(error, MarkedYAMLError) else str(error).splitlines()[0]
    )
    return problem.partition(" with value ")[0]  # ruamel adds both values of a duplicate key
