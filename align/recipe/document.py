"""YAML 1.2 files of settings: plain values, and the line on which each of them stands."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLWarning
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from align.ground.errors import InputError
from align.ground.json import Json, in_words
from align.ground.paths import near
from align.recipe.sweep import KEY
from align.recipe.telling import problems as words

RECIPE_LIMIT = 1 << 20
"""Characters of a recipe."""
PLAINER = {
    "<document start>": "a second value begins here, as in a file of rows; expected one mapping of settings",
    "another document": "a second document begins here; expected one mapping of settings",
    "<block end>": "it is indented otherwise than what it stands below, or a ':' or '-' is missing",
    "found character '\\t'": "a tab stands here; write blanks in its place",
}
"""What ruamel says with names of its parser -> that for people."""
NAMES = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
"""What a key may be: text, and << of a merge."""
KEYS_LIMIT = 20_000
"""Keys and list items of a recipe whose aliases are written out."""


@dataclass
class Document:
    """A parsed YAML file: plain values, and where each of them stands."""

    path: Path
    values: Json
    """As they are with what --set lays over them."""
    lines: dict[words.Path, str]
    anchored: set[words.Path] = field(default_factory=set)
    """What others may be a copy of (&name)."""
    written: Json = field(default_factory=dict)
    """The values as they stand in the file."""

    def where(self, path: words.Path) -> str:
        """ "file:line" of the innermost key of `path` that is written somewhere."""
        inside_out = (path[:n] for n in range(len(path), -1, -1))
        return next((self.lines[keys] for keys in inside_out if keys in self.lines), str(self.path))

    def origin(self, stage: str, path: words.Path) -> words.Path:
        """Where a setting of a stage is written: with the stage, or among the defaults."""
        own = ("stages", stage, *path)
        depth = range(len(path), 0, -1)
        in_stage = next((n for n in depth if own[: 2 + n] in self.lines), 0)
        beside = next((n for n in depth if path[:n] in self.lines), 0)
        return path if beside > in_stage else own

    def is_at_fault(self, path: words.Path) -> bool:
        """Whether it is to be said of what stands there that nothing takes it: what --set wrote, and what the file says
        where --set leaves that as it is; not of what others are a copy of."""
        laid = self.laid_over()
        begins = [path[:n] for n in range(1, len(path) + 1)]
        return any(begin in laid for begin in begins) or not (laid or self.anchored.intersection(begins))

    def laid_over(self) -> dict[words.Path, str]:
        """What --set wrote last, by where it stands."""
        return {path: text for path, text in self.lines.items() if text.startswith("--set")}


def read_yaml(path: str | Path) -> Document:
    """A YAML 1.2 file that holds a mapping.

    Raises: InputError naming the line where it cannot be read.
    """
    path = Path(path)
    try:
        text = _text(path)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}.{near(path) or ' Check the path.'}") from error
    except (OSError, UnicodeDecodeError) as error:
        if path.is_dir():
            raise InputError(f"{path} is a folder; expected a YAML file of settings.") from error
        raise InputError(f"{path}: cannot be read: {in_words(error)}. Expected a YAML file of settings.") from error
    if len(text) > RECIPE_LIMIT:
        raise InputError(f"{path} has more than the {RECIPE_LIMIT:,} characters that a recipe has at most.")
    document = Document(path, {}, {})
    with _reading(str(path), "YAML", lines=True):
        _note_lines(YAML(typ="safe", pure=True).compose(text), (), document)
        values = YAML(typ="safe", pure=True).load(text)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {words.found(values)}.")
    if _entries(values) > KEYS_LIMIT:
        raise InputError(f"{path}: with its aliases written out it has more than {KEYS_LIMIT:,} keys and list items.")
    document.values, document.written = values, dict(values)
    return document


def _text(path: Path) -> str:
    """A file's text, one character beyond the limit at most: a device may never end. A pipe that nobody writes to holds
    none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for, perhaps for ever
    with open(descriptor, encoding="utf-8-sig") as file:
        os.set_blocking(descriptor, True)
        return file.read(RECIPE_LIMIT + 1)


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
        said = " ".join(in_words(error).replace('"<unicode string>"', where).split())[:300]
        raise InputError(f"{where}: not {what}: {said or type(error).__name__}.") from error


def lay_over(document: Document, text: str, *, swept: bool = False) -> None:
    """Lay "stages.dpo.beta=0.2" over a document; if `swept` also "stages.dpo.beta=0.1,0.2", a sweep over these values.

    Raises: InputError.
    """
    key, equals, value = text.partition("=")
    keys = tuple(key.split("."))
    if not equals or not all(keys):
        raise InputError(f"--set takes KEY=VALUE, such as stages.dpo.beta=0.2; found {words.found(text)}.")
    stages = document.values.get("stages")
    if keys[0] == "stages" and len(keys) > 1 and isinstance(stages, dict) and keys[1] not in stages:
        guess = words.nearest(keys[1], map(str, stages))
        hint = f"did you mean {guess}?" if guess else f"it has {', '.join(stages)}."
        raise InputError(f"--set {text}: {keys[1]} is not a stage of this recipe; {hint}")
    if isinstance(stages, dict) and len(keys) > 1 and keys[0] in stages:
        raise InputError(f"--set {text}: settings of a stage stand under stages: did you mean stages.{text}?")
    with _reading(f"--set {text}", "a YAML value"):
        parsed = YAML(typ="safe", pure=True).load(f"[{value}]" if swept else value)
    if swept:
        parsed = {KEY: parsed} if len(parsed) > 1 else next(iter(parsed), None)  # nothing is null, as in YAML
    for path, before in document.laid_over().items():
        if path[: len(keys)] == keys:
            raise InputError(f"{before} and --set {text}: {key} is given twice; give it once.")
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
        inner = value if isinstance(value, list) else []
        if isinstance(value, dict):
            inner = list(value.values())
        count += len(inner)
        waiting += inner
    return count


def _note_lines(node: Node | None, path: words.Path, document: Document) -> None:
    file = document.path
    if node is not None and node.anchor:
        document.anchored.add(path)
    if isinstance(node, MappingNode):
        for key, value in node.value:
            line = f"{file}:{key.start_mark.line + 1}"
            if not isinstance(key, ScalarNode):
                raise InputError(f"{line}: a key is a list or a mapping; expected a name.")
            if key.tag not in NAMES:
                shown = words.found(YAML(typ="safe", pure=True).load(key.value))
                raise InputError(f"{line}: a key is {shown}; expected a name, in quotes if need be.")
            document.lines[*path, key.value] = line
            _note_lines(value, (*path, key.value), document)
    elif isinstance(node, SequenceNode):
        for i, value in enumerate(node.value):
            document.lines[*path, str(i)] = f"{file}:{value.start_mark.line + 1}"


def _mark(error: YAMLError) -> str:
    mark = (error.problem_mark or error.context_mark) if isinstance(error, MarkedYAMLError) else None
    return f":{mark.line + 1}" if mark else ""


def _reason(error: YAMLError) -> str:
    problem = str(error).partition("\n")[0]
    if isinstance(error, MarkedYAMLError):
        problem = error.problem or error.context or ""
    said = problem.partition(" with value ")[0]  # ruamel adds both values of a duplicate key
    return next((words for sign, words in PLAINER.items() if sign in said), said)
