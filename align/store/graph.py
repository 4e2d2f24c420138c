"""Who builds on whom: what an artifact reaches, and what descends from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from align.ground.errors import AlignError
from align.store.artifact import STORED, Artifact, Lineage
from align.store.layout import StoreLayout


class Graph:
    """Every artifact of a store, read once; those whose manifest is damaged are in `broken`, by what is wrong."""

    def __init__(self, store: StoreLayout) -> None:
        self.artifacts: dict[str, Artifact] = {}
        self.broken: dict[str, AlignError] = {}
        for path in sorted((store.path / "artifacts").glob("*.json")):
            try:
                self.artifacts[path.stem] = store.load(path.stem)
            except AlignError as error:
                if path.exists():  # else it was collected since it was listed
                    self.broken[path.stem] = error
        self._by_data = by_data(self.artifacts.values())

    def sources(self, artifact: Artifact) -> set[str]:
        """Digests of what an artifact was made from: `Artifact.needs`, and the data artifacts here that it was trained
        on."""
        return artifact.needs | {found.digest for digest in artifact.data.values() for found in self.made_data(digest)}

    def made_data(self, digest: str) -> list[Artifact]:
        """The data artifacts whose file of data has this sha256."""
        return self._by_data.get(digest, [])

    def reached(self, roots: Iterable[str]) -> dict[str, Artifact]:
        """Everything that `roots` reach, themselves included.

        Raises: AlignError at a root or an ancestor that is missing or damaged: what it reaches cannot be known.
        """
        found: dict[str, Artifact] = {}
        waiting = list(roots)
        while waiting:
            digest = waiting.pop()
            if digest in found:
                continue
            if digest not in self.artifacts:
                raise self.broken.get(digest) or AlignError(f"artifact {digest} is not there.")
            found[digest] = self.artifacts[digest]
            waiting.extend(self.sources(found[digest]))
        return found

    def descendants(self, digests: Iterable[str]) -> list[Artifact]:
        """What was made from any of `digests`, directly or not, nearest first."""
        children: dict[str, list[Artifact]] = {}
        for artifact in self.artifacts.values():
            for source in self.sources(artifact):
                children.setdefault(source, []).append(artifact)
        first = set(digests)
        found: dict[str, Artifact] = {}
        row = first
        while row:
            below = {child.digest: child for digest in row for child in children.get(digest, ())}
            row = set(below) - set(found) - first
            found |= {digest: below[digest] for digest in sorted(row)}
        return list(found.values())

    def youngest_first(self, digests: Iterable[str]) -> list[str]:
        """`digests` with every artifact before those it was made from; damaged ones, whose sources are unknown, come
        first."""
        chosen = set(digests)
        order: list[str] = []
        done: set[str] = set()
        for start in sorted(chosen):
            stack = [(start, False)]
            while stack:
                digest, left = stack.pop()
                if left:
                    order.append(digest)
                elif digest not in done:
                    done.add(digest)
                    stack.append((digest, True))
                    artifact = self.artifacts.get(digest)
                    stack.extend(
                        (source, False) for source in (self.sources(artifact) if artifact else ()) if source in chosen
                    )
        damaged = [digest for digest in order if digest in self.broken]
        return damaged + [digest for digest in reversed(order) if digest not in self.broken]


def by_data(artifacts: Iterable[Artifact]) -> dict[str, list[Artifact]]:
    """The data artifacts among `artifacts`, by the sha256 of their file of data, which is what a manifest's `data`
    names."""
    found: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        if artifact.kind == "data" and (entry := artifact.files.get("data.jsonl")):
            found.setdefault(entry["sha256"], []).append(artifact)
    return found


def grow(store: StoreLayout, artifact: Artifact) -> Lineage:
    """The lineage of an artifact.

    Raises: AlignError when an ancestor is missing or damaged.
    """
    data = by_data(data_artifacts(store))
    grown: dict[str, Lineage] = {}

    def at(artifact: Artifact, above: frozenset[Artifact] = frozenset()) -> Lineage:
        """`above` are on the way to it, and made none of its data: rows turned into others and back are a circle."""
        if artifact.digest not in grown:
            base, path = artifact.base["model"] if artifact.base else "", above | {artifact}
            grown[artifact.digest] = Lineage(
                artifact,
                {role: at(store.load(parent), path) for role, parent in artifact.parents.items()},
                at(store.load(base.removeprefix(STORED)), path) if base.startswith(STORED) else None,
                {
                    name: at(source, path)
                    for name, digest in artifact.data.items()
                    if (source := maker(artifact, digest, [a for a in data.get(digest, ()) if a not in above]))
                },
            )
        return grown[artifact.digest]

    return at(artifact)


def maker(artifact: Artifact, digest: str, among: Sequence[Artifact]) -> Artifact | None:
    """Which of several data artifacts of one content `artifact` took: the one that was worked on last, as what cleaning
    leaves as it was has the same content; where it is one of them itself, the one that none of them was made from."""
    worked_on = [found for found in among if digest in found.data.values()]
    first = [found for found in among if found not in worked_on]
    last = [*worked_on, *first] if artifact not in among else first
    return last[0] if last else None


def data_artifacts(store: StoreLayout) -> Iterator[Artifact]:
    """The intact data artifacts of a store; a look at the bytes spares reading the others."""
    for path in sorted((store.path / "artifacts").glob("*.json")):
        with suppress(AlignError, FileNotFoundError):
            if b'"kind":"data"' in path.read_bytes():
                yield store.load(path.stem)


def objects_of(artifacts: Iterable[Artifact]) -> dict[str, int]:
    """sha256 -> bytes of every file that `artifacts` name."""
    return {entry["sha256"]: entry["size"] for artifact in artifacts for entry in artifact.files.values()}


@dataclass(frozen=True)
class RefSize:
    """What a ref takes in bytes, with all that it reaches."""

    alone: int
    """Bytes that no other ref reaches: what removing the ref and collecting gives back."""
    shared: int
    """Bytes that another ref reaches as well."""


def sizes(graph: Graph, refs: Mapping[str, str]) -> dict[str, RefSize]:
    """What every ref takes.

    Raises: AlignError where a ref reaches what is damaged.
    """
    objects = {name: objects_of(graph.reached([digest]).values()) for name, digest in refs.items()}
    users = Counter(digest for reached in objects.values() for digest in reached)
    found = {}
    for name, reached in objects.items():
        alone = sum(size for digest, size in reached.items() if users[digest] == 1)
        found[name] = RefSize(alone, sum(reached.values()) - alone)
    return found
