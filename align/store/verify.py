"""The walk over a store that finds all damage. It takes no lock: what it finds is looked at again, for others may write
and collect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from align.ground.disk import unseal
from align.ground.progress import Progress
from align.store.artifact import Artifact, is_digest
from align.store.damage import Damage, bad_answer, bad_cost, bad_inputs, bad_place, bad_ref, bad_seen, found_hash
from align.store.graph import Graph
from align.store.layout import StoreLayout
from align.store.run import read_cost


def verify(store: StoreLayout) -> Iterator[Damage]:
    """Read everything the store holds and yield each damaged or missing file once."""
    graph = Graph(store)
    names = {digest: name for name, path in reversed(store.pointers("refs").items()) if (digest := store.pointer(path))}
    yield from _manifests(store, graph, names)
    yield from _objects(store, graph, names)
    for name, path in store.pointers("refs").items():
        if bad := _bad_pointer(store, path):
            yield bad_ref(path, name, bad)
    for path in store.pointers("asked").values():
        if bad := _bad_pointer(store, path):
            yield bad_answer(path, bad)
    for path in sorted((store.path / "runs").glob("*/cost.json")):
        with suppress(PermissionError):  # another user's
            if read_cost(path) is None and path.exists():
                yield bad_cost(path)
    for path in sorted((store.path / "runs").glob("*/inputs")):
        with suppress(PermissionError):
            # of finished runs it means nothing
            if any((path.parent / "checkpoints").glob("*")) and unseal(path) is None and path.exists():
                yield bad_inputs(path)
    for path in sorted((store.path / "remotes").glob("[!.]*")):
        if unseal(path) is None and path.exists():
            yield bad_seen(path)
    for path in sorted((store.path / "places").glob("[!.]*")):
        if unseal(path) is None and path.exists():
            yield bad_place(path)


def _manifests(store: StoreLayout, graph: Graph, names: Mapping[str, str]) -> Iterator[Damage]:
    """Manifests that are damaged, and those that are missing although an artifact needs them."""
    children: dict[str, list[Artifact]] = {}
    for artifact in graph.artifacts.values():
        for source in artifact.needs:
            children.setdefault(source, []).append(artifact)
    for digest in sorted(set(graph.broken) | (set(children) - set(graph.artifacts))):
        path, needed = store.manifest_path(digest), _there(store, children.get(digest, ()))
        found = found_hash(path)
        if found == f"sha256 {digest}":
            if digest not in graph.broken:  # it was made since the graph was read
                continue
            found = str(graph.broken[digest])
        if path.exists() or path.is_symlink() or needed:
            below = _there(store, graph.descendants([digest]))
            rest = tuple(artifact for artifact in below if artifact not in needed)
            yield Damage(path, f"a manifest with sha256 {digest}", found, needed, store.rerun(digest), rest, names)


def _objects(store: StoreLayout, graph: Graph, names: Mapping[str, str]) -> Iterator[Damage]:
    """Objects that are damaged, and those that are missing although a manifest names them."""
    users: dict[str, list[Artifact]] = {}
    for artifact in graph.artifacts.values():
        for digest in {entry["sha256"] for entry in artifact.files.values()}:
            users.setdefault(digest, []).append(artifact)
    present = {path.name for path in (store.path / "objects").glob("*/*") if is_digest(path.name)}
    sizes = {digest: _size(store.object_path(digest)) for digest in sorted(present | set(users))}
    with Progress("verify", len(sizes), sum(sizes.values())) as progress:
        for digest, size in sizes.items():
            path = store.object_path(digest)
            found = found_hash(path)
            progress.add(size, 1)
            if found == f"sha256 {digest}":
                continue
            if needed := _there(store, users.get(digest, ())):
                below = _there(store, graph.descendants(artifact.digest for artifact in needed))
                yield Damage(path, f"sha256 {digest}", found, needed, store.rerun(*needed), below, names)
            elif path.exists() or path.is_symlink():
                yield Damage(path, f"sha256 {digest}", found, (), "No artifact needs it: delete it.")


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _there(store: StoreLayout, artifacts: Iterable[Artifact]) -> tuple[Artifact, ...]:
    """Those that have not been collected since they were read: manifests go before objects and ancestors, so they
    tell."""
    return tuple(artifact for artifact in artifacts if store.manifest_path(artifact.digest).exists())


def _bad_pointer(store: StoreLayout, path: Path) -> str | None:
    """What a file of refs/ or asked/ holds instead of an artifact's digest; None when all is well, or it is gone."""
    digest = store.pointer(path)
    if not path.exists() or (digest and store.manifest_path(digest).exists()):
        return None
    again = store.pointer(path)  # it may have moved, and its artifact been collected, between the two looks
    if not path.exists() or (again and store.manifest_path(again).exists()):
        return None
    return again or "no digest"
