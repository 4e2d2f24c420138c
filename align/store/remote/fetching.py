"""Files on their way from a remote: fetched beside the store, looked at, and only then put into it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from align.ground import disk as disk
from align.ground.errors import AlignError
from align.ground.parallel import in_parallel
from align.ground.progress import Progress
from align.store.artifact import MANIFEST_LIMIT, Artifact, canonical_json
from align.store.damage import found_hash
from align.store.family import objects
from align.store.layout import Local
from align.store.remote.arrival import check_files
from align.store.remote.place import Remote
from align.store.remote.sending import manifest_path, object_path


def manifest_of(store: Local, remote: Remote, digest: str) -> Artifact:
    """An artifact from this store, or else from the remote, whose manifest is verified but not yet kept."""
    if is_committed(store, digest):
        return store.resolve(digest)
    path = manifest_path(digest)
    content = remote.read(path, MANIFEST_LIMIT)
    if content is None:
        raise AlignError(
            f"{remote.where(path)} is missing, but something there needs it. Push it again from a store that has it."
        )
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise AlignError(f"{remote.where(path)} is not what its name says: its sha256 is {found}. Nothing was written.")
    try:
        return Artifact.parse(content, digest)
    except AlignError as error:
        raise AlignError(f"{remote.where(path)} is refused: {error}") from error


def is_committed(store: Local, digest: str) -> bool:
    return found_hash(store.manifest_path(digest)) == f"sha256 {digest}"


def has(store: Local, digest: str, size: int, *, closely: bool) -> bool:
    """Whether an object is here: of the right size, and `closely` also of the right bytes, before a new manifest
    vouches for it."""
    place = store.object_path(digest)
    if place.is_symlink() or not place.is_file() or place.stat().st_size != size:
        return False
    return not closely or disk.sha256_file(place) == digest


def check_room(store: Local, remote: Remote, size: int) -> None:
    folder = next(path for path in (store.path, *store.path.parents) if path.is_dir())
    if size > (free := shutil.disk_usage(folder).free):
        raise AlignError(
            f"{remote.url}: {size:,} bytes are to come, and {folder} has {free:,} free. Nothing was written."
        )


def arrive(
    store: Local, remote: Remote, fresh: Sequence[Artifact], missing: Mapping[str, int], progress: Progress
) -> None:
    """Fetch objects into cache/arriving/ and look at them.

    What has arrived when the network or the process fails is not fetched again; what is refused is removed, with all
    that came with it.
    """
    waiting = store.arriving
    try:
        in_parallel(
            lambda digest: fetch(remote, digest, missing[digest], waiting / digest, progress), missing, progress.stop
        )
        for artifact in fresh:
            places = {
                name: waiting / entry["sha256"] if entry["sha256"] in missing else store.object_path(entry["sha256"])
                for name, entry in artifact.files.items()
            }
            check_files(artifact, places)
    except AlignError:
        shutil.rmtree(waiting, ignore_errors=True)
        raise


def check_still_here(
    store: Local, artifacts: Mapping[str, Artifact], fresh: Sequence[Artifact], missing: Sequence[str]
) -> None:
    """What was here when the pull began may have been collected since. Raises: AlignError; what has arrived waits for
    the next pull."""
    new = {artifact.digest for artifact in fresh}
    here = all(store.manifest_path(digest).exists() for digest in artifacts if digest not in new)
    if not here or not all(
        store.object_path(digest).exists() for digest in objects(artifacts.values()).keys() - set(missing)
    ):
        raise AlignError(
            f"{store.path}: what was here already was collected during the pull. Run the same command again."
        )


def settle(store: Local, fresh: Sequence[Artifact], missing: Sequence[str]) -> None:
    """Put what has arrived into the store: objects, then manifests, parents first."""
    waiting = store.arriving
    for digest in missing:
        place = store.object_path(digest)
        disk.make_folder(place.parent)
        os.utime(waiting / digest)
        os.replace(waiting / digest, place)
        disk.sync_folder(place.parent)
    for artifact in fresh:
        disk.write_file(store.manifest_path(artifact.digest), canonical_json(artifact.manifest), mode=0o444)
    shutil.rmtree(waiting, ignore_errors=True)


def fetch(remote: Remote, digest: str, size: int, target: Path, progress: Progress) -> None:
    """One object, read no further than its size and kept only if its sha256 is right."""
    where = remote.where(object_path(digest))
    if found_hash(target) == f"sha256 {digest}":
        progress.add(size, 1)
        return
    hashed, arrived = hashlib.sha256(), 0
    with disk.written(target, mode=0o444) as file:
        try:
            for chunk in remote.chunks(object_path(digest)):
                arrived += len(chunk)
                if arrived > size:
                    raise AlignError(
                        f"{where} has more than the {size:,} bytes that its manifest says. Nothing was committed."
                    )
                hashed.update(chunk)
                file.write(chunk)
                progress.add(len(chunk))
        except FileNotFoundError as error:
            raise AlignError(
                f"{where} is missing, but an artifact there needs it. Push it again from a store that has it."
            ) from error
        if arrived != size or hashed.hexdigest() != digest:
            found = f"{arrived:,} bytes with sha256 {hashed.hexdigest()}"
            remedy = "Nothing was committed. Delete it there and push it again from a store that has it whole."
            raise AlignError(f"{where} is not what its name says: expected {size:,} bytes, found {found}. {remedy}")
    progress.add(0, 1)
