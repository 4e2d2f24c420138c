"""Where things lie in a store's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from align.errors import InputError
from align.store.artifact import Artifact, is_digest


class Layout:
    """The paths of a store, and the small files refs/<name> and asked/<key>: one digest and a line end each."""

    path: Path

    def manifest_path(self, digest: str) -> Path:
        return self.path / "artifacts" / f"{digest}.json"

    def object_path(self, digest: str) -> Path:
        return self.path / "objects" / digest[:2] / digest

    def keyed_path(self, kind: str, key: str) -> Path:
        """asked/<key>, runs/<key> or places/<digest>.

        Raises: InputError for what is no key.
        """
        if not is_digest(key):
            raise InputError(f"{key!r} is no key; expected 64 characters of lower-case hex.")
        return self.path / kind / key

    def pointers(self, kind: str) -> dict[str, Path]:
        """The files of refs/ or asked/ by name, sorted."""
        root = self.path / kind
        return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("[!.]*")) if path.is_file()}

    def pointer(self, path: Path) -> str | None:
        """The digest in a file of refs/ or asked/; None when it holds anything else."""
        text = path.read_bytes().decode("ascii", "replace")
        return text[:-1] if text.endswith("\n") and is_digest(text[:-1]) else None

    def names(self, artifact: Artifact | str) -> list[str]:
        """The refs that point at an artifact."""
        return [name for name, path in self.pointers("refs").items() if self.pointer(path) == str(artifact)]

    def label(self, artifact: Artifact | str) -> str:
        """How to call an artifact, or the digest of a lost one, in a message: its first ref, else stage and short digest."""
        stage = artifact.stage if isinstance(artifact, Artifact) else "the stage that made"
        return next(iter(self.names(artifact)), f"{stage} {str(artifact)[:12]}")

    def rerun(self, *artifacts: Artifact | str) -> str:
        """The remedy for what stages wrote: forget that they are done and run them again, which writes their files anew."""
        digests = {str(artifact) for artifact in artifacts}
        done = [str(path) for path in self.pointers("asked").values() if self.pointer(path) in digests]
        forget = f"delete {' '.join(done)} and " if done else ""
        labels = " and ".join(self.label(artifact) for artifact in artifacts)
        return f"To make it anew, {forget}run {labels} again."


class Local(Protocol):
    """What push and pull need of a store; `Store` has it."""

    path: Path

    def manifest_path(self, digest: str) -> Path: ...
    def object_path(self, digest: str) -> Path: ...
    def keyed_path(self, kind: str, key: str) -> Path: ...
    def rerun(self, *artifacts: Artifact | str) -> str: ...
    def refs(self) -> dict[str, str]: ...
    def resolve(self, name: Artifact | str) -> Artifact: ...
    def artifacts(self) -> Iterator[Artifact]: ...
    def check_name(self, name: str) -> None: ...
    def tag(self, name: str, artifact: Artifact | str) -> str | None: ...
    def remember(self, key: str, artifact: Artifact) -> None: ...
