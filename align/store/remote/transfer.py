"""Push and pull: a store's artifacts in a bucket or a folder elsewhere, in the layout that they have here.

What travels: objects, then manifests (parents first), then names; so whatever is killed leaves no manifest without its
objects and no name without its manifest. Costs, runs, places of bases and the cache stay. Answers (asked/) do not
travel either: a puller works them out from the manifests, so that no remote can hand out an answer to a question that
its manifest did not ask.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.ground import disk as disk
from align.ground.errors import AlignError, InputError
from align.ground.terminal import Progress
from align.store.artifact import MANIFEST_LIMIT, Artifact, canonical_json
from align.store.damage import Damage, found_hash
from align.store.family import family, objects
from align.store.layout import Local
from align.store.remote.arrival import check_contracts, check_files
from align.store.remote.backend import Folder, Remote, in_parallel, open_remote, reaching
from align.store.remote.names import (
    POINTER,
    check_moves,
    check_pulled,
    check_together,
    remember_seen,
    remote_refs,
    swap,
)


@dataclass(frozen=True)
class Transfer:
    """What one push or pull did."""

    names: dict[str, str]
    """Name -> digest, the same here and there now."""
    moved: dict[str, str]
    """Name -> digest that it pointed at before, for those that pointed elsewhere."""
    artifacts: int
    """Manifests that travelled."""
    files: int
    """Objects that travelled."""
    size: int
    """Their bytes."""
    kept: int
    """Objects that were there already."""


def push(store: Local, url: str | Path, names: Sequence[str] = (), *, force: bool = False) -> Transfer:
    """Send refs (all, when none is named) or digests with their whole lineage; what is there already is not sent again.

    Raises: InputError for an unknown name or URL; AlignError when something here is damaged, when a name moved there
    since this store last saw it (unless `force`), or when the remote cannot be written.
    """
    remote = _open(store, url)
    known = store.refs()
    if not known and not names:
        raise InputError(f"{store.path} holds no named artifact yet; there is nothing to push.")
    refs = {name: store.resolve(name).digest for name in names or known if name in known}
    roots = [*refs.values(), *(store.resolve(name).digest for name in names if name not in known)]
    artifacts = family(store.resolve, roots)
    with store.hold(*roots), reaching(remote), remote.writing():
        remote.check_format()
        if refs and not force:
            remote.check_swap()
        there = {name: remote.read(f"refs/{name}", POINTER) for name in refs}
        check_together([*refs, *remote.names("refs")] if refs else [], remote.url)
        if not force:
            check_moves(remote, store, refs, there, artifacts)
        known_sizes = _sizes(remote, [_manifest(digest) for digest in artifacts])
        fresh = [a for a in artifacts.values() if known_sizes[_manifest(a)] != len(canonical_json(a.manifest))]
        for artifact in fresh:
            check_contracts(artifact)
            places = {name: _place(store, entry["sha256"]) for name, entry in artifact.files.items()}
            check_files(artifact, places)
        wanted = objects(artifacts.values())
        found = _sizes(remote, [_object(digest) for digest in wanted])
        missing = [digest for digest, size in wanted.items() if found[_object(digest)] != size]
        size = sum(wanted[digest] for digest in missing)
        progress = Progress("push", len(missing), size)
        in_parallel(lambda digest: _send(store, remote, digest, wanted[digest], progress), missing, progress.stop)
        for artifact in fresh:
            remote.write(_manifest(artifact), canonical_json(artifact.manifest))
            _check_size(remote, _manifest(artifact), len(canonical_json(artifact.manifest)))
        moved = {name: old for name, digest in refs.items() if (old := swap(remote, name, there[name], digest))}
    with store.writing():
        remember_seen(store, remote, refs)
    return Transfer(refs, moved, len(fresh), len(missing), size, len(wanted) - len(missing))


def pull(store: Local, url: str | Path, names: Sequence[str] = (), *, force: bool = False) -> Transfer:
    """Fetch names (all, when none is given) or digests with their whole lineage. Nothing of it is in the store before
    all of it is right.

    Raises: InputError for an unknown name or URL; AlignError for whatever is not what its name says or holds what could
    do harm, and for a name that would move to what does not descend from it (unless `force`).
    """
    remote = _open(store, url)
    with reaching(remote):
        remote.check_format()
        refs, roots = remote_refs(store, remote, names)
        artifacts = family(lambda digest: _manifest_of(store, remote, digest), roots)
        here = store.refs()
        if not force:
            check_pulled(remote, store, refs, here, artifacts)
        fresh = [a for a in artifacts.values() if not _is_committed(store, a.digest)]
        for artifact in fresh:
            check_contracts(artifact)
        wanted = objects(artifacts.values())
        new = objects(fresh).keys()
        missing = [digest for digest in wanted if not _has(store, digest, wanted[digest], closely=digest in new)]
        size = sum(wanted[digest] for digest in missing)
        _check_room(store, remote, size)
        with disk.explaining(store.path), disk.locked(store.pull_lock):
            progress = Progress("pull", len(missing), size)
            _arrive(store, remote, fresh, {digest: wanted[digest] for digest in missing}, progress)
            with store.writing():  # until all has its name, or `align gc` could come between
                _check_still_here(store, artifacts, fresh, missing)
                _settle(store, fresh, missing)
                moved = {
                    name: old for name, digest in refs.items() if (old := store.tag(name, digest)) and old != digest
                }
                for artifact in artifacts.values():
                    if not store.keyed_path("asked", artifact.key).exists():
                        store.remember(artifact.key, artifact)
                remember_seen(store, remote, refs)
    return Transfer(refs, moved, len(fresh), len(missing), size, len(wanted) - len(missing))


# ---- bytes -----------------------------------------------------------------------------------------------------------


def _open(store: Local, url: str | Path) -> Remote:
    remote = open_remote(url)
    if isinstance(remote, Folder) and str(url) in store.refs() and not remote.folder.exists():
        raise InputError(
            f"{url} is a name in {store.path}, no place. The place comes first: align push URL {url}, align pull URL "
            f"{url}."
        )
    if isinstance(remote, Folder) and remote.folder.resolve() == store.path.resolve():
        raise InputError(f"{url} is this store itself. Expected another place.")
    return remote


def _object(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest}"


def _manifest(artifact: Artifact | str) -> str:
    return f"artifacts/{artifact}.json"


def _sizes(remote: Remote, paths: Sequence[str]) -> dict[str, int | None]:
    return dict(zip(paths, in_parallel(remote.size, paths), strict=True))


def _check_size(remote: Remote, path: str, size: int) -> None:
    """Raises: AlignError where the remote holds another size, also a moment later: where writes are not atomic, another
    push may be writing the same object."""
    for pause in (0.0, 0.2, 1.0):
        time.sleep(pause)
        if (found := remote.size(path)) == size:
            break
    else:
        raise AlignError(
            f"{remote.where(path)} has {found} bytes after it was sent; expected {size}. The same command sends it "
            f"again."
        )


def _place(store: Local, digest: str, *, closely: bool = False) -> Path:
    """Where an object lies here; `closely` reads it, too. Raises: AlignError when it is missing or damaged."""
    place = store.object_path(digest)
    if place.is_symlink() or not place.is_file() or (closely and disk.sha256_file(place) != digest):
        needed = tuple(a for a in store.artifacts() if digest in {entry["sha256"] for entry in a.files.values()})
        damage = Damage(place, f"sha256 {digest}", found_hash(place), needed, store.rerun(*needed))
        raise AlignError(f"Nothing damaged is sent. {damage}")
    return place


def _send(store: Local, remote: Remote, digest: str, size: int, progress: Progress) -> None:
    """Verify one object here, send it, and see that it arrived whole."""
    told = 0

    def sent(more: int) -> None:
        nonlocal told
        told += more
        progress.add(more)

    remote.send(_place(store, digest, closely=True), _object(digest), sent)
    _check_size(remote, _object(digest), size)
    progress.add(size - told, 1)  # not every file system tells of all of it


def _manifest_of(store: Local, remote: Remote, digest: str) -> Artifact:
    """An artifact from this store, or else from the remote, whose manifest is verified but not yet kept."""
    if _is_committed(store, digest):
        return store.resolve(digest)
    path = _manifest(digest)
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


def _is_committed(store: Local, digest: str) -> bool:
    return found_hash(store.manifest_path(digest)) == f"sha256 {digest}"


def _has(store: Local, digest: str, size: int, *, closely: bool) -> bool:
    """Whether an object is here: of the right size, and `closely` also of the right bytes, before a new manifest
    vouches for it."""
    place = store.object_path(digest)
    if place.is_symlink() or not place.is_file() or place.stat().st_size != size:
        return False
    return not closely or disk.sha256_file(place) == digest


def _check_room(store: Local, remote: Remote, size: int) -> None:
    folder = next(path for path in (store.path, *store.path.parents) if path.is_dir())
    if size > (free := shutil.disk_usage(folder).free):
        raise AlignError(
            f"{remote.url}: {size:,} bytes are to come, and {folder} has {free:,} free. Nothing was written."
        )


def _arrive(
    store: Local, remote: Remote, fresh: Sequence[Artifact], missing: Mapping[str, int], progress: Progress
) -> None:
    """Fetch objects into cache/arriving/ and look at them.

    What has arrived when the network or the process fails is not fetched again; what is refused is removed, with all
    that came with it.
    """
    waiting = store.arriving
    try:
        in_parallel(
            lambda digest: _fetch(remote, digest, missing[digest], waiting / digest, progress), missing, progress.stop
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


def _check_still_here(
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


def _settle(store: Local, fresh: Sequence[Artifact], missing: Sequence[str]) -> None:
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


def _fetch(remote: Remote, digest: str, size: int, target: Path, progress: Progress) -> None:
    """One object, read no further than its size and kept only if its sha256 is right."""
    where = remote.where(_object(digest))
    if found_hash(target) == f"sha256 {digest}":
        progress.add(size, 1)
        return
    hashed, arrived = hashlib.sha256(), 0
    with disk.written(target, mode=0o444) as file:
        try:
            for chunk in remote.chunks(_object(digest)):
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
