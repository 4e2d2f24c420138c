"""Files on their way to a remote, and where they lie there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from align.ground import disk as disk
from align.ground.errors import AlignError
from align.ground.parallel import in_parallel
from align.ground.progress import Progress
from align.store.artifact import Artifact
from align.store.damage import Damage, found_hash
from align.store.layout import Local
from align.store.remote.place import Remote


def object_path(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest}"


def manifest_path(artifact: Artifact | str) -> str:
    return f"artifacts/{artifact}.json"


def sizes(remote: Remote, paths: Sequence[str]) -> dict[str, int | None]:
    return dict(zip(paths, in_parallel(remote.size, paths), strict=True))


def check_size(remote: Remote, path: str, size: int) -> None:
    """Raises: AlignError where the remote holds another size, also a moment later: where writes are not atomic, another
    push may be writing the same object."""
    for pause in (0.0, 0.2, 1.0):
        time.sleep(pause)
        if (found := remote.size(path)) == size:
            break
    else:
        raise AlignError(
            f"{remote.where(path)} has {found} bytes after it was sent; expected {size}. The same command sends it "
            "again."
        )


def place(store: Local, digest: str, *, closely: bool = False) -> Path:
    """Where an object lies here; `closely` reads it, too. Raises: AlignError when it is missing or damaged."""
    place = store.object_path(digest)
    if place.is_symlink() or not place.is_file() or (closely and disk.sha256_file(place) != digest):
        needed = tuple(a for a in store.artifacts() if digest in {entry["sha256"] for entry in a.files.values()})
        damage = Damage(place, f"sha256 {digest}", found_hash(place), needed, store.rerun(*needed))
        raise AlignError(f"Nothing damaged is sent. {damage}")
    return place


def send(store: Local, remote: Remote, digest: str, size: int, progress: Progress) -> None:
    """Verify one object here, send it, and see that it arrived whole."""
    told = 0

    def sent(more: int) -> None:
        nonlocal told
        told += more
        progress.add(more)

    remote.send(place(store, digest, closely=True), object_path(digest), sent)
    check_size(remote, object_path(digest), size)
    progress.add(size - told, 1)  # not every file system tells of all of it
