"""What a manifest may say that leaves for a remote or arrives from one: the shapes that every stage relies on. What is
on no list is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from align.ground.errors import AlignError
from align.ground.terminal import COMMANDS
from align.store.artifact import STORED, Artifact, is_digest
from align.store.shapes import (
    BASE,
    COMPARED,
    FILES,
    KEY,
    LIMIT,
    LIMITS,
    MARKUP,
    NAME,
    NEEDED,
    NEWER,
    QUANTISED,
    TEXT,
    VERDICTS,
    Fits,
    is_measure,
    is_number,
)


def check_contracts(artifact: Artifact) -> None:
    """Refuse a manifest whose files, names, base, text contract or metrics are not of the shape that every stage relies
    on.

    Raises: AlignError.
    """
    where = f"manifest {artifact.short}"
    for key, value in entries(artifact.manifest):
        _check_entry(key, value, where)
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", artifact.stage):
        raise AlignError(f"{where}: stage is {artifact.stage[:60]!r}; expected the plain name of a stage.")
    for what, names in (("data", artifact.data), ("parents", artifact.parents)):
        if long := next((name for name in names if len(name) > NAME), None):
            raise AlignError(
                f"{where}: {what} has the name {long[:60]!r}… of {len(long):,} characters; such a name has at most "
                f"{NAME}."
            )
    for name, digest in artifact.data.items():
        if not is_digest(digest):
            raise AlignError(f"{where}: data.{name} is {digest!r}; expected a digest.")
    _check_shape("base", artifact.base, BASE, artifact, where)
    _check_shape("text", artifact.text, TEXT, artifact, where)
    base = artifact.base
    if base and base["model"].startswith(STORED) and base["model"] != f"{STORED}{base['digest']}":
        raise AlignError(f"{where}: base.model is {base['model']!r}, but base.digest is {base['digest']}.")
    if not 0 <= artifact.version < 1 << 31:
        raise AlignError(f"{where}: version is no number that a stage can have.")
    for name, value in artifact.metrics.items():
        if not is_measure(value) or name.endswith("_ci95") != isinstance(value, list):
            raise AlignError(
                f"{where}: metrics.{name} is {str(value)[:60]!r}; expected a number, an interval or a word."
            )
    if "verdict" in artifact.metrics:
        _check_verdict(artifact, where)
    _check_names(artifact, where)


def _check_entry(key: str, value: object, where: str) -> None:
    """A key of a manifest and what stands there can be shown. Raises: AlignError."""
    for text in (key, value):
        if isinstance(text, str) and COMMANDS.search(text):
            raise AlignError(
                f"{where}: {text[:60]!r} holds control characters; a terminal could take them for commands."
            )
    if len(key) > KEY:
        raise AlignError(f"{where}: the key {key[:60]!r}… has {len(key):,} characters; at most {KEY:,} are read.")
    if set(key) & MARKUP:
        raise AlignError(
            f"{where}: the key {key[:60]!r} holds a line break or markup; a page or a line could be forged with it."
        )


def _check_shape(
    name: str, found: Mapping[str, object] | None, shape: Mapping[str, Fits], artifact: Artifact, where: str
) -> None:
    """A part of a manifest has the keys of its shape, and values that fit. Raises: AlignError."""
    if found is None:
        if name in NEEDED.get(artifact.kind, ()):
            raise AlignError(f"{where}: {name} is null; {artifact.described} has one.")
        return
    if found.keys() - shape.keys() or shape.keys() - found.keys() - NEWER:
        raise AlignError(f"{where}: {name} has {', '.join(sorted(found)) or 'nothing'}; expected {', '.join(shape)}.")
    for key, fits in shape.items():
        if key in found and not fits(found[key]):
            raise AlignError(f"{where}: {name}.{key} is {str(found[key])[:80]!r}, which it cannot be.")


def _check_verdict(artifact: Artifact, where: str) -> None:
    """A merge's, with the figures that it is drawn from. Raises: AlignError."""
    if artifact.kind not in COMPARED or artifact.metrics["verdict"] not in VERDICTS:
        found = str(artifact.metrics["verdict"])[:40]
        raise AlignError(f"{where}: its verdict is {found!r}; merged models have one, which is {', '.join(VERDICTS)}.")
    quantised = artifact.kind == "model" and artifact.base is not None and artifact.base["quantize"]
    needed = COMPARED[artifact.kind] | (QUANTISED if quantised else set())
    if not needed <= {name for name, value in artifact.metrics.items() if is_number(value)}:
        raise AlignError(f"{where}: it has a verdict without {', '.join(sorted(needed))}, which it is drawn from.")


def _check_names(artifact: Artifact, where: str) -> None:
    """Its files are those of its kind. Raises: AlignError."""
    allowed, needed = FILES[artifact.kind]
    for path, entry in artifact.files.items():
        if not re.fullmatch(allowed, path):
            raise AlignError(f"{where}: {path!r} is no file that {artifact.described} has. Nothing of it is taken.")
        limit = next((size for end, size in LIMITS.items() if path.endswith(end)), LIMIT)
        if entry["size"] > limit:
            raise AlignError(f"{where}: {path} has {entry['size']:,} bytes; such a file has at most {limit:,}.")
    if missing := [path for path in needed if path not in artifact.files]:
        raise AlignError(f"{where}: {artifact.described} cannot do without {missing[0]}, which it does not name.")


def entries(value: object) -> Iterator[tuple[str, object]]:
    """Every key and what stands there, however deep; what stands in a list has the key ""."""
    waiting = [("", value)]
    while waiting:
        key, inner = waiting.pop()
        yield key, inner
        if isinstance(inner, dict):
            waiting += inner.items()
        elif isinstance(inner, list):
            waiting += [("", item) for item in inner]
