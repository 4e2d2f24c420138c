"""What is in use, written down so that the collector leaves it alone: files of digests, each locked while somebody uses
them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from align.ground.disk import explaining, make_folder, seal, unseal, write_file
from align.ground.errors import AlignError
from align.store.access import Grip
from align.store.artifact import Artifact, canonical_json, is_digest
from align.store.layout import StoreLayout


@dataclass(frozen=True)
class Inputs:
    """What a run reads: artifacts by digest, and data by the sha256 of its file, which is a data artifact's or a file
    from outside."""

    artifacts: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Keep them at `path`. A file that says so already stays, for somebody may have a grip on it."""
        content = seal(canonical_json({"artifacts": sorted(set(self.artifacts)), "data": sorted(set(self.data))}))
        if not path.is_file() or path.read_bytes() != content:
            write_file(path, content)

    @staticmethod
    def read(path: Path) -> Inputs:
        """Raises: AlignError when the file holds anything else, or is not as it was written."""
        try:
            found = json.loads(unseal(path) or b"")
            inputs = Inputs(tuple(found["artifacts"]), tuple(found["data"]))
            if not all(map(is_digest, (*inputs.artifacts, *inputs.data))):
                raise ValueError("it names what is no digest")
        except (ValueError, KeyError, TypeError) as error:
            remedy = (
                "Nothing was removed. Run that stage again, which writes it anew, or give stopped runs up: "
                "align gc --checkpoints."
            )
            raise AlignError(f"{path} is damaged: it does not say what is in use. {remedy}") from error
        return inputs


class Hold:
    """Artifacts that `align gc` leaves alone until the block of `Store.hold` ends, or the process."""

    def __init__(self, store: StoreLayout, resolve: Callable[[Artifact | str], Artifact]) -> None:
        self.store, self.resolve = store, resolve
        self.path = store.path / "holds" / f"{os.getpid()}-{secrets.token_hex(8)}"
        self.held: dict[str, Artifact] = {}
        self.grip: Grip | None = None

    def add(self, name: Artifact | str) -> Artifact:
        """Hold one more. Raises: what `Store.resolve` raises."""
        self.resolve(name)  # a wrong name makes no store
        with self.store.writing(), explaining(self.path):
            artifact = self.resolve(name)
            if artifact.digest not in self.held:
                self.held[artifact.digest] = artifact
                if self.grip is None:
                    make_folder(self.path.parent)
                    self.path.touch()
                    self.grip = Grip(self.path)
                # In place, for the lock is on this file; nobody reads it while this process is inside `writing`.
                self.path.write_bytes(seal(canonical_json({"artifacts": list(self.held), "data": []})))
        return artifact

    def release(self) -> None:
        if self.grip is not None:
            with self.store.writing():
                self.path.unlink(missing_ok=True)
            self.grip.release()
            self.grip = None


@contextmanager
def gripped_inputs(store: StoreLayout, path: Path, inputs: Inputs) -> Iterator[None]:
    """Keep `inputs` at `path` and hold them for the block.

    Raises: AlignError when one of them is not there any more.
    """
    with store.writing(), explaining(path):
        make_folder(path.parent)
        path.parent.chmod(0o700)
        for digest in inputs.artifacts:
            store.load(digest)
        inputs.write(path)
        grip = Grip(path)
    try:
        yield
    finally:
        grip.release()
