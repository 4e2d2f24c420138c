"""Damage in a store: what it is, how it reads, and the walk that finds all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from align.errors import AlignError
from align.store.artifact import Artifact, is_digest
from align.store.files import sha256_file
from align.store.layout import Layout


@dataclass(frozen=True)
class Damage:
    """One file of the store that is not what its name says. `str(damage)` is the message."""

    path: Path
    expected: str
    found: str
    needed_by: tuple[Artifact, ...]
    """The artifacts that cannot be used without it."""
    remedy: str
    """What to run again."""

    def __str__(self) -> str:
        needed = ", ".join(f"{artifact.stage} {artifact.short}" for artifact in self.needed_by)
        lines = [f"{self.path} is damaged.", f"  expected  {self.expected}", f"  found     {self.found}"]
        return "\n".join([*lines, *([f"  needed by {needed}"] if needed else []), f"  {self.remedy}"])


def found_hash(path: Path) -> str:
    """What lies there, "sha256 …" or why it cannot be read."""
    if path.is_symlink():
        return "a symlink"
    try:
        return f"sha256 {sha256_file(path)}"
    except FileNotFoundError:
        return "nothing (the file is missing)"
    except OSError as error:
        return f"an unreadable file ({error.strerror})"


def bad_ref(path: Path, name: str, found: str) -> Damage:
    """A ref that points at no artifact of the store."""
    return Damage(path, "the digest of an artifact", found, (), f"Point it at one (store.tag({name!r}, DIGEST)) or delete the file.")


def bad_answer(path: Path, found: str) -> Damage:
    """A file of asked/ that points at no artifact of the store."""
    return Damage(path, "the digest of an artifact", found, (), "Delete the file: the stage then runs again when it is asked for.")


def verify(store: Layout) -> Iterator[Damage]:
    """Read everything the store holds and yield each damaged or missing file once."""
    artifacts: dict[str, Artifact] = {}
    broken: dict[str, tuple[str, str]] = {}
    for path in (store.path / "artifacts").glob("*.json"):
        found = found_hash(path)
        try:
            if found == f"sha256 {path.stem}":
                artifacts[path.stem] = Artifact.parse(path.read_bytes(), path.stem)
            else:
                broken[path.stem] = (f"sha256 {path.stem}", found)
        except AlignError as error:
            broken[path.stem] = (f"a manifest (sha256 {path.stem})", str(error))
    children: dict[str, list[Artifact]] = {}
    users: dict[str, list[Artifact]] = {}
    for artifact in sorted(artifacts.values(), key=lambda a: a.digest):
        for parent in set(artifact.parents.values()):
            children.setdefault(parent, []).append(artifact)
        for digest in {entry["sha256"] for entry in artifact.files.values()}:
            users.setdefault(digest, []).append(artifact)

    for digest in sorted(set(broken) | (set(children) - set(artifacts))):
        expected, found = broken.get(digest, (f"sha256 {digest}", "nothing (the file is missing)"))
        yield Damage(store.manifest_path(digest), expected, found, tuple(children.get(digest, ())), store.rerun(digest))

    present = {path.name for path in (store.path / "objects").glob("*/*") if is_digest(path.name)}
    for digest in sorted(present | set(users)):
        path = store.object_path(digest)
        if (found := found_hash(path)) != f"sha256 {digest}":
            needed = tuple(users.get(digest, ()))
            remedy = store.rerun(*needed) if needed else "No artifact needs it: delete it."
            yield Damage(path, f"sha256 {digest}", found, needed, remedy)

    known = set(artifacts) | set(broken)
    for name, path in store.pointers("refs").items():
        if (found := store.pointer(path) or "no digest") not in known:
            yield bad_ref(path, name, found)
    for path in store.pointers("asked").values():
        if (found := store.pointer(path) or "no digest") not in known:
            yield bad_answer(path, found)
