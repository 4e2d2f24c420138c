"""A judge's code as bytes: its file, and every module that import statements name in its folder, however indirectly.

It is read once: what is hashed is what is run (`program.py`).
"""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path

from align.ground.errors import InputError
from align.ground.paths import near
from align.store import digest_json


@dataclass(frozen=True)
class Source:
    """A module's file. A folder without `__init__.py` is a package that has no text."""

    path: Path
    text: bytes | None
    package: bool


@dataclass(frozen=True)
class Code:
    """A judge's file and its helpers by the names that they are imported under."""

    given: Path
    """The file as it was named."""
    main: Source
    helpers: dict[str, Source] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.main.path.parent

    def shown(self, path: Path) -> str:
        """A file of the judge's folder as a person would name it."""
        return os.path.join(self.given.parent, path.relative_to(self.folder))

    def digest(self) -> str:
        """The sha256 of the file alone, or that of the names and sha256 of all files; what the file itself is called
        does not count."""
        assert self.main.text is not None
        own = hashlib.sha256(self.main.text).hexdigest()
        texts = {
            s.path.relative_to(self.folder).as_posix(): s.text for s in self.helpers.values() if s.text is not None
        }
        if not texts:
            return own
        return digest_json({"": own} | {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()})


def split_name(name: str) -> tuple[Path, str]:
    """File and function of `file.py:function`. Raises: InputError when it is neither or the file is missing."""
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py") or not function.isidentifier():
        names = [function, *path.split(".")]
        hint = ""
        if all(part.isidentifier() for part in names) and not os.path.isfile(path):
            hint = f" A function of a package is imported in such a file: from {path} import {function}."
        elif not colon and "/" in name and not name.endswith(".py"):
            hint = " A model that scores answers is no judge: give `reward` an artifact (align reward, align import)."
        raise InputError(f"judge: {name!r} is not FILE.py:FUNCTION, such as judge.py:score.{hint}")
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise InputError(f"judge: there is no file {path}.{near(path)}")
    return file, function


def of_setting(setting: str, error: InputError) -> InputError:
    """The same error, which calls the judge by its setting."""
    return InputError(f"{setting}: {str(error).removeprefix('judge: ')}")


def digest(name: str) -> str:
    """What a judge is: the digest of its code, and the function. Raises: InputError as `split_name` and `read` do."""
    path, function = split_name(name)
    return f"{read(path).digest()}:{function}"


def read(given: Path) -> Code:
    """The code of a judge's file. Raises: InputError for a file that is no Python, or a helper that has the name of an
    installed module."""
    path = Path(os.path.abspath(given))
    code = Code(given, Source(path, _bytes(path), package=False))
    # a folder that is importable itself, as rewards/ in a project is by rewards.rubric
    roots = [path.parent, *(root for root in path.parent.parents if str(root) in map(os.path.abspath, sys.path))]
    waiting = [("", code.main)]
    while waiting:
        importer, source = waiting.pop()
        for name in _imported(importer, source, code):
            for found, helper in _locate(name, roots, code):
                if found not in code.helpers:
                    code.helpers[found] = helper
                    waiting.append((found, helper))
    return code


def installed(name: str) -> bool:
    """Whether Python itself or an installed package has a module of this name."""
    places = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    found = None if name in sys.stdlib_module_names else PathFinder.find_spec(name, places)
    return name in sys.stdlib_module_names or (found is not None and found.origin is not None)


def _imported(importer: str, source: Source, code: Code) -> Iterator[str]:
    """Absolute names that a module's import statements may load, wherever they stand."""
    if source.text is None:
        return
    try:
        tree = ast.parse(source.text)
    except SyntaxError as error:
        raise InputError(f"judge: {code.shown(source.path)}:{error.lineno or 1} is no Python: {error.msg}.") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"judge: {code.shown(source.path)} is no Python: {error or type(error).__name__}.") from error
    parents = importer.split(".") if source.package else importer.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level <= len(parents):
            package = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _locate(name: str, roots: list[Path], code: Code) -> list[tuple[str, Source]]:
    """The module and the packages that it lies in, where it lies in the judge's folder.

    Raises: InputError where Python could take an installed module for it.
    """
    parts = name.split(".")
    if parts[0] == "align":
        return []
    for root in roots:
        found: list[tuple[str, Source]] = []
        for i in range(len(parts)):
            source = _source(root.joinpath(*parts[: i + 1]))
            if source is None:
                break
            found.append((".".join(parts[: i + 1]), source))
        inside = [(n, s) for n, s in found if s.path.is_relative_to(code.folder) and s.path != code.main.path]
        if any(s.text is not None for _, s in inside):
            if installed(parts[0]):
                if found[0][1].text is None:
                    return []  # as Python has it: a folder without __init__.py comes after what is installed
                where = code.shown(found[0][1].path) if inside[0] == found[0] else str(found[0][1].path)
                raise InputError(
                    f"judge: {code.given} imports {parts[0]}, which is {where} and an installed module too. Rename "
                    "the file."
                )
            return inside
    return []


def _source(place: Path) -> Source | None:
    """The module that a path without ending stands for."""
    if (place / "__init__.py").is_file():
        return Source(place / "__init__.py", _bytes(place / "__init__.py"), package=True)
    if (file := place.with_name(place.name + ".py")).is_file():
        return Source(file, _bytes(file), package=False)
    return Source(place, None, package=True) if place.is_dir() else None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"judge: {path} cannot be read: {error.strerror}.") from error
