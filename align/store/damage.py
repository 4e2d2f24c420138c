"""Damage in a store: what it is and how it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from align.ground.disk import sha256_file
from align.store.artifact import Artifact


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
    descendants: tuple[Artifact, ...] = ()
    """What was made from those, directly or not, and would have to be made on what they are made anew."""
    names: Mapping[str, str] = field(default_factory=dict)
    """A ref of the artifacts above, by digest."""

    def __str__(self) -> str:
        lines = [f"{self.path} is damaged.", f"  expected   {self.expected}", f"  found      {self.found}"]
        for title, artifacts in (("needed by", self.needed_by), ("made from", self.descendants)):
            if artifacts:
                lines.append(f"  {title}  {', '.join(map(self._name, artifacts))}")
        return "\n".join([*lines, f"  {self.remedy}"])

    def _name(self, artifact: Artifact) -> str:
        return self.names.get(artifact.digest, f"{artifact.stage} {artifact.short}")


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
    return Damage(
        path,
        "the digest of an artifact",
        found,
        (),
        f"Point it at one (align tag REF {name}) or remove it (align rm {name}).",
    )


def bad_answer(path: Path, found: str) -> Damage:
    """A file of asked/ that points at no artifact of the store."""
    return Damage(
        path, "the digest of an artifact", found, (), "Delete the file: the stage then runs again when it is asked for."
    )


def bad_cost(path: Path) -> Damage:
    """A file that says what a run cost, and is not as it was written."""
    return Damage(
        path, "JSON with its own sha256", found_hash(path), (), "Delete the file: only what that run cost is lost."
    )


def bad_inputs(path: Path) -> Damage:
    """A file that says what a stopped run uses, and is not as it was written."""
    remedy = "Run the stage again, which writes it anew, or give the run up: align gc --checkpoints."
    return Damage(path, "digests and their sha256", found_hash(path), (), remedy)


def bad_seen(path: Path) -> Damage:
    """A file that says where a remote's names pointed, and is not as it was written."""
    return Damage(
        path,
        "names and their sha256",
        found_hash(path),
        (),
        "Delete the file: the next push or pull may then ask for --force.",
    )


def bad_place(path: Path) -> Damage:
    """A file that says where a base lies, and is not as it was written."""
    return Damage(
        path,
        "a path and its sha256",
        found_hash(path),
        (),
        "Delete the file and tell the store again: align locate DIR.",
    )
