"""The collector: what no name reaches and nobody holds, and its removal. docs/store.md, "Collecting", says why this is
safe.

Everything here runs while its process is alone with the store (`Access.alone`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from align.ground.disk import TEMP, sync_folder, temp_beside
from align.ground.errors import AlignError
from align.store.access import gripped
from align.store.artifact import Artifact, is_digest
from align.store.graph import Graph, objects_of
from align.store.hold import Inputs
from align.store.layout import StoreLayout
from align.store.run import read_cost


@dataclass
class Garbage:
    """What a collection removes, and what it leaves although no name reaches it."""

    answers: list[Path] = field(default_factory=list)
    """Files of asked/ whose artifact goes or is gone."""
    artifacts: list[str] = field(default_factory=list)
    """Digests, every one before those it was made from."""
    known: dict[str, Artifact] = field(default_factory=dict)
    """Those of `artifacts` whose manifest is intact."""
    objects: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    """Folders of cache/ and runs/, checkpoints, and unfinished files."""
    size: int = 0
    """Bytes of all of these."""
    held: list[str] = field(default_factory=list)
    """Digests that only running or stopped work reaches."""
    stopped: list[Path] = field(default_factory=list)
    """Folders of runs/ that can go on from their checkpoints."""
    arrived: list[Path] = field(default_factory=list)
    """Objects that a stopped pull has fetched and can go on from."""

    def remove(self, store: StoreLayout) -> None:
        """Remove it all, from the outside in: whenever this is killed, what is left is sound."""
        _unlink(self.answers)
        _unlink(store.manifest_path(digest) for digest in self.artifacts)
        _unlink(self.objects)
        for path in self.others:
            if path.is_dir() and not path.is_symlink():
                os.replace(path, aside := temp_beside(path))  # whole or gone, for whoever looks at it next
                shutil.rmtree(aside)
            else:
                path.unlink(missing_ok=True)


def _unlink(paths: Iterable[Path]) -> None:
    """Remove files for good before anything else is removed."""
    folders = set()
    for path in paths:
        path.unlink(missing_ok=True)
        folders.add(path.parent)
    for folder in folders:
        sync_folder(folder)


@dataclass(frozen=True)
class _Run:
    """One folder of runs/, as the collector finds it."""

    path: Path
    busy: bool
    """Somebody holds it."""
    resumable: bool
    """It was stopped and left checkpoints."""
    artifact: str | None
    """What it made, by its cost."""


def find_garbage(store: StoreLayout, *, give_up: bool, no_pull: bool) -> Garbage:
    """Look through the store. `give_up` also what stopped runs and pulls could go on from; `no_pull` says that no pull
    is under way.

    Raises: AlignError when what must be followed is damaged, missing, or may not be read.
    """
    graph = Graph(store)
    runs = list(_runs(store))
    refs = _roots(store)
    held, idle = _holds(store, graph, runs, give_up)
    try:
        named = graph.reached(refs)
        reached = graph.reached([*refs, *held])
    except AlignError as error:
        raise AlignError(
            f"{error}\nNothing was removed: what a damaged artifact reaches cannot be known. Repair it (`align "
            "verify` says how), or "
            "remove the names that need it (`align rm NAME`); where a stopped run needs it, --checkpoints gives that "
            "up."
        ) from error
    going = (set(graph.artifacts) | set(graph.broken)) - set(reached)
    answers = {path: store.pointer(path) for path in store.pointers("asked").values()}
    garbage = Garbage(
        answers=[path for path, digest in answers.items() if digest and digest not in reached],
        artifacts=graph.youngest_first(going),
        known={digest: graph.artifacts[digest] for digest in going & set(graph.artifacts)},
        objects=sorted(_objects(store) - {store.object_path(digest) for digest in objects_of(reached.values())}),
        held=sorted(set(reached) - set(named)),
    )
    garbage.others += sorted(_laid_out(store) - {store.folder_path(digest) for digest in reached})
    garbage.others += _listed(store.path / "cache/computed")
    for run in runs:
        if run.busy:
            continue
        resumable = run.resumable and not give_up
        if resumable:
            garbage.stopped.append(run.path)
        elif run.artifact not in reached:
            garbage.others.append(run.path)
            continue
        elif (run.path / "checkpoints").exists():
            garbage.others.append(run.path / "checkpoints")
        garbage.others += _unfinished(_listed(run.path))
    garbage.others += [*idle, *_left_over(store)]
    if no_pull:
        arrived = _listed(store.arriving)
        garbage.others += [store.arriving] if give_up else _unfinished(arrived)
        garbage.arrived += [] if give_up else [path for path in arrived if is_digest(path.name)]
    paths = [store.manifest_path(digest) for digest in garbage.artifacts]
    garbage.size = sum(path.lstat().st_size for path in [*garbage.answers, *paths, *garbage.objects]) + sum(
        map(size_of, garbage.others)
    )
    return garbage


def _roots(store: StoreLayout) -> list[str]:
    """What the refs point at."""
    found = []
    for name, path in store.pointers("refs").items():
        if (digest := store.pointer(path)) is None:
            raise AlignError(
                f"{path} holds no digest. Nothing was removed. Point it at an artifact (align tag REF {name}) or "
                f"align rm {name}."
            )
        found.append(digest)
    return found


def _holds(store: StoreLayout, graph: Graph, runs: Iterable[_Run], give_up: bool) -> tuple[list[str], list[Path]]:
    """Digests of the artifacts in use, and the files of holds/ that mean nothing any more."""
    idle = []
    living = [run.path / "inputs" for run in runs if run.busy or (run.resumable and not give_up)]
    for path in _listed(store.path / "holds"):
        if gripped(path):
            living.append(path)
        else:
            idle.append(path)
    found = []
    for path in living:
        if path.exists():
            inputs = Inputs.read(path)
            found += [
                *inputs.artifacts,
                *(artifact.digest for digest in inputs.data for artifact in graph.made_data(digest)),
            ]
    return found, idle


def _runs(store: StoreLayout) -> Iterator[_Run]:
    for path in _listed(store.path / "runs"):
        if not is_digest(path.name):
            continue
        try:
            inputs = path / "inputs"
            cost = read_cost(path / "cost.json")
            answered = store.keyed_path("asked", path.name).exists()
            left = any(not inner.is_dir() for inner in (path / "checkpoints").rglob("*"))
            yield _Run(
                path, inputs.exists() and gripped(inputs), left and not answered, cost["artifact"] if cost else None
            )
        except PermissionError as error:
            raise AlignError(
                f"{path} cannot be read, and what that run uses must be known. Nothing was removed. Collect as its "
                "user, or as root."
            ) from error


def _objects(store: StoreLayout) -> set[Path]:
    return {
        path
        for folder in _listed(store.path / "objects")
        if folder.is_dir()
        for path in _listed(folder)
        if is_digest(path.name)
    }


def _laid_out(store: StoreLayout) -> set[Path]:
    """Folders of cache/ with an artifact's files; earlier versions called them by the whole digest."""
    return {path for path in _listed(store.path / "cache") if is_digest(path.name) or is_digest(path.name * 2)}


def _left_over(store: StoreLayout) -> Iterator[Path]:
    """Unfinished files and folders where only processes inside `writing` make them, of which there is none now."""
    for kind in ("artifacts", "asked", "cache", "places", "remotes", "runs"):
        yield from _unfinished(_listed(store.path / kind))
    for kind in ("objects", "refs"):
        yield from _unfinished((store.path / kind).rglob(f"{TEMP}*"))


def _unfinished(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.name.startswith(TEMP))


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; nothing when it is not there."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; hard links, as cache/ has to objects, take nothing."""
    if path.is_dir() and not path.is_symlink():
        return sum(size_of(inner) for inner in path.iterdir())
    return path.lstat().st_size if path.lstat().st_nlink == 1 else 0
