"""Push and pull: a store's artifacts in a bucket or a folder elsewhere, in the layout that they have here.

What travels: objects, then manifests (parents first), then names; so whatever is killed leaves no manifest without its
objects and no name without its manifest. Costs, runs, places of bases and the cache stay. Answers (asked/) do not
travel either: a puller works them out from the manifests, so that no remote can hand out an answer to a question that
its manifest did not ask.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align.ground import disk as disk
from align.ground.errors import InputError
from align.ground.parallel import in_parallel
from align.ground.progress import Progress, Work
from align.store.artifact import canonical_json
from align.store.family import family, objects
from align.store.layout import Local
from align.store.remote.arrival import check_files
from align.store.remote.backend import open_remote, reaching
from align.store.remote.contracts import check_contracts
from align.store.remote.fetching import arrive, check_room, check_still_here, has, is_committed, manifest_of, settle
from align.store.remote.folder import Folder
from align.store.remote.names import (
    POINTER,
    SENT,
    check_moves,
    check_pulled,
    check_together,
    note,
    remote_refs,
    swap,
)
from align.store.remote.place import Remote
from align.store.remote.sending import check_size, manifest_path, object_path, place, send, sizes


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
    # one that is named and damaged is told of where it is resolved
    known = store.sound_refs() if names else store.refs()
    if not known and not names:
        raise InputError(f"{store.path} holds no named artifact; there is nothing to push.")
    refs = {name: store.resolve(name).digest for name in names or known if name in known}
    roots = [*refs.values(), *(store.resolve(name).digest for name in names if name not in known)]
    artifacts = family(store.resolve, roots)
    with Work("push: comparing with what is there"), store.hold(*roots), reaching(remote), remote.writing():
        remote.check_format()
        if refs and not force:
            remote.check_swap()
        there = {name: remote.read(f"refs/{name}", POINTER) for name in refs}
        check_together([*refs, *remote.names("refs")] if refs else [], remote.url)
        if not force:
            check_moves(remote, store, refs, there, artifacts)
        known_sizes = sizes(remote, [manifest_path(digest) for digest in artifacts])
        fresh = [a for a in artifacts.values() if known_sizes[manifest_path(a)] != len(canonical_json(a.manifest))]
        for artifact in fresh:
            check_contracts(artifact)
            places = {name: place(store, entry["sha256"]) for name, entry in artifact.files.items()}
            check_files(artifact, places)
        wanted = objects(artifacts.values())
        found = sizes(remote, [object_path(digest) for digest in wanted])
        missing = [digest for digest, size in wanted.items() if found[object_path(digest)] != size]
        size = sum(wanted[digest] for digest in missing)
        with Progress("push", len(missing), size) as progress:
            in_parallel(lambda digest: send(store, remote, digest, wanted[digest], progress), missing, progress.stop)
        for artifact in fresh:
            remote.write(manifest_path(artifact), canonical_json(artifact.manifest))
            check_size(remote, manifest_path(artifact), len(canonical_json(artifact.manifest)))
        with store.writing():
            note(store, remote, refs, SENT)
        moved = {name: old for name, digest in refs.items() if (old := swap(remote, name, there[name], digest))}
    with store.writing():
        note(store, remote, refs)
    return Transfer(refs, moved, len(fresh), len(missing), size, len(wanted) - len(missing))


def pull(store: Local, url: str | Path, names: Sequence[str] = (), *, force: bool = False) -> Transfer:
    """Fetch names (all, when none is given) or digests with their whole lineage. Nothing of it is in the store before
    all of it is right.

    Raises: InputError for an unknown name or URL; AlignError for whatever is not what its name says or holds what could
    do harm, and for a name that would move to what does not descend from it (unless `force`).
    """
    remote = _open(store, url)
    with Work("pull: comparing with what is here"), reaching(remote):
        remote.check_format()
        refs, roots = remote_refs(store, remote, names)
        artifacts = family(lambda digest: manifest_of(store, remote, digest), roots)
        if not force:
            check_pulled(remote, store, refs, artifacts)
        fresh = [a for a in artifacts.values() if not is_committed(store, a.digest)]
        for artifact in fresh:
            check_contracts(artifact)
        wanted = objects(artifacts.values())
        new = objects(fresh).keys()
        missing = [digest for digest in wanted if not has(store, digest, wanted[digest], closely=digest in new)]
        size = sum(wanted[digest] for digest in missing)
        check_room(store, remote, size)
        with disk.explaining(store.path), disk.locked(store.pull_lock):
            with Progress("pull", len(missing), size) as progress:
                arrive(store, remote, fresh, {digest: wanted[digest] for digest in missing}, progress)
            with store.writing():  # until all has its name, or `align gc` could come between
                check_still_here(store, artifacts, fresh, missing)
                settle(store, fresh, missing)
                moved = {
                    name: old for name, digest in refs.items() if (old := store.tag(name, digest)) and old != digest
                }
                for artifact in artifacts.values():
                    if not store.keyed_path("asked", artifact.key).exists():
                        store.remember(artifact.key, artifact)
                note(store, remote, refs)
    return Transfer(refs, moved, len(fresh), len(missing), size, len(wanted) - len(missing))


def _open(store: Local, url: str | Path) -> Remote:
    remote = open_remote(url)
    if isinstance(remote, Folder) and str(url) in store.pointers("refs") and not remote.folder.exists():
        raise InputError(
            f"{url} is a name in {store.path}, no place. The place comes first: align push URL {url}, align pull URL "
            f"{url}."
        )
    if isinstance(remote, Folder) and os.path.realpath(remote.folder) == os.path.realpath(store.path):
        raise InputError(f"{url} is this store itself. Expected another place.")
    return remote
