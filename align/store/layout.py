"""Where things lie in a store's folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from align.ground.errors import AlignError, InputError
from align.store.access import access_to
from align.store.artifact import Artifact, is_digest
from align.store.damage import Damage

MARK, MARKED = "format", b"1\n"
"""A file of every remote that was pushed to, which may be a store in use: the format of what lies there."""


class StoreLayout:
    """The paths of a store, and the small files refs/<name> and asked/<key>: one digest and a line end each."""

    path: Path
    called: dict[str, str]
    """The ref by which an artifact was last asked for, by its digest: so it is called in messages."""

    def exists(self) -> bool:
        """Whether anything was ever written there."""
        return any((self.path / name).exists() for name in ("format", "artifacts", "objects", "refs", "runs"))

    def manifest_path(self, digest: str) -> Path:
        return self.path / "artifacts" / f"{digest}.json"

    def object_path(self, digest: str) -> Path:
        return self.path / "objects" / digest[:2] / digest

    def folder_path(self, digest: str) -> Path:
        """Where an artifact's files are laid out: half its digits fit a line, and still no two are alike."""
        return self.path / "cache" / digest[: len(digest) // 2]

    def keyed_path(self, kind: str, key: str) -> Path:
        """asked/<key>, runs/<key> or places/<digest>.

        Raises: InputError for what is no key.
        """
        if not is_digest(key):
            raise InputError(f"{key!r} is no key; expected 64 characters of lower-case hex.")
        return self.path / kind / key

    @property
    def arriving(self) -> Path:
        """Where what is pulled waits until all of it is there."""
        return self.path / "cache" / "arriving"

    @property
    def pull_lock(self) -> Path:
        """Who holds it may write to `arriving`."""
        return self.path / "cache" / ".pull.lock"

    def writing(self) -> AbstractContextManager[None]:
        """Write to the store; `align gc` waits until the block ends. Blocks nest, and several processes may be in one
        at a time."""
        return access_to(self.path).shared()

    def load(self, digest: str) -> Artifact:
        """The artifact of a whole digest, with its manifest verified.

        Raises: InputError for what is no digest; AlignError when it is missing or damaged.
        """
        if not is_digest(digest):
            raise InputError(f"{digest!r} is no digest; expected 64 characters of lower-case hex.")
        path = self.manifest_path(digest)
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            missing = (
                f"{self.path} has no artifact {digest}. Run the stage that made it again, or name its store (--store)."
            )
            raise AlignError(missing) from error
        if (found := hashlib.sha256(content).hexdigest()) != digest:
            raise AlignError(str(Damage(path, f"sha256 {digest}", f"sha256 {found}", (), self.rerun(digest))))
        return Artifact.parse(content, digest)

    def pointers(self, kind: str) -> dict[str, Path]:
        """The files of refs/ or asked/ by name, sorted.

        Raises: PermissionError where a folder may not be read; one that is removed meanwhile is no error.
        """
        root = self.path / kind
        found: dict[str, Path] = {}
        for folder, _, files in os.walk(root, onerror=_unless_gone):
            found |= {
                (Path(folder) / name).relative_to(root).as_posix(): Path(folder) / name
                for name in files
                if name[0] != "."
            }
        return dict(sorted(found.items()))

    def pointer(self, path: Path) -> str | None:
        """The digest in a file of refs/ or asked/; None when it holds anything else or is not there."""
        try:
            text = path.read_bytes().decode("ascii", "replace")
        except FileNotFoundError:
            return None
        return text[:-1] if text.endswith("\n") and is_digest(text[:-1]) else None

    def names(self, artifact: Artifact | str) -> list[str]:
        """The refs that point at an artifact."""
        return [name for name, path in self.pointers("refs").items() if self.pointer(path) == str(artifact)]

    def label(self, artifact: Artifact | str) -> str:
        """How to call an artifact, or the digest of a lost one, in a message: by name, else stage and short digest."""
        stage = artifact.stage if isinstance(artifact, Artifact) else "the stage that made"
        return self.called_now(artifact) or f"{stage} {str(artifact)[:12]}"

    def called_now(self, artifact: Artifact | str) -> str:
        """The ref that an artifact was asked for by, else one of the recipes that were asked for, else its first one;
        "" without any."""
        names, called = self.names(artifact), self.called.get(str(artifact))
        recipes = {name.partition("/")[0] for name in self.called.values()}
        near = [name for name in names if name.partition("/")[0] in recipes]
        return called if called in names else next(iter([*near, *names]), "")

    def rerun(self, *artifacts: Artifact | str) -> str:
        """The remedy for what stages wrote: forget that they are done and run them again, which writes their files
        anew."""
        digests = {str(artifact) for artifact in artifacts}
        done = [str(path) for path in self.pointers("asked").values() if self.pointer(path) in digests]
        forget = f"delete {' '.join(done)} and " if done else ""
        labels = " and ".join(self.label(artifact) for artifact in artifacts)
        return f"To make it anew, {forget}run {labels} again."


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


class Local(Protocol):
    """What push and pull need of a store; `Store` has it."""

    path: Path

    @property
    def arriving(self) -> Path: ...
    @property
    def pull_lock(self) -> Path: ...
    def manifest_path(self, digest: str) -> Path: ...
    def object_path(self, digest: str) -> Path: ...
    def keyed_path(self, kind: str, key: str) -> Path: ...
    def rerun(self, *artifacts: Artifact | str) -> str: ...
    def pointers(self, kind: str) -> dict[str, Path]: ...
    def refs(self) -> dict[str, str]: ...
    def sound_refs(self) -> dict[str, str]: ...
    def damaged_refs(self) -> dict[str, Damage]: ...
    def resolve(self, name: Artifact | str) -> Artifact: ...
    def artifacts(self) -> Iterator[Artifact]: ...
    def check_name(self, name: str) -> None: ...
    def tag(self, name: str, artifact: Artifact | str) -> str | None: ...
    def remember(self, key: str, artifact: Artifact) -> None: ...
    def writing(self) -> AbstractContextManager[None]: ...
    def hold(self, *names: Artifact | str) -> AbstractContextManager[object]: ...
