"""Artifacts together with all that they come from, wherever their manifests are read from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

from align.ground.errors import AlignError
from align.ground.parallel import in_parallel
from align.store.artifact import Artifact, canonical_json

GENERATIONS = 200
"""Ancestors in a row that a lineage may have."""
MANIFESTS_LIMIT = 64 << 20
"""Bytes of all manifests in one push or pull."""
BATCH = 64
"""Manifests that are read before their bytes are counted."""


def family(load: Callable[[str], Artifact], roots: Iterable[str]) -> dict[str, Artifact]:
    """The artifacts with these digests and all that they need, by digest, parents first.

    Raises: what `load` raises; AlignError for a lineage that is too long to be one.
    """
    found: dict[str, Artifact] = {}
    waiting, size = list(dict.fromkeys(roots)), 0
    for _ in range(GENERATIONS + 1):
        for start in range(0, len(waiting), BATCH):
            for artifact in in_parallel(load, waiting[start : start + BATCH]):
                found[artifact.digest] = artifact
                size += len(canonical_json(artifact.manifest))
            if size > MANIFESTS_LIMIT:
                raise AlignError(
                    f"the manifests of these artifacts have more than {MANIFESTS_LIMIT:,} bytes. Name fewer at once."
                )
        waiting = sorted({digest for artifact in found.values() for digest in artifact.needs} - found.keys())
    if waiting:
        raise AlignError(
            f"artifact {waiting[0][:12]} comes after {GENERATIONS} others in a row; no lineage is that long."
        )
    try:
        order = list(
            TopologicalSorter({digest: sorted(artifact.needs) for digest, artifact in found.items()}).static_order()
        )
    except CycleError as error:
        raise AlignError(
            f"artifact {error.args[1][0][:12]} is its own ancestor, which nothing named by its content can be."
        ) from error
    age: dict[str, int] = {}
    for digest in order:
        age[digest] = 1 + max((age[parent] for parent in found[digest].needs), default=0)
        if age[digest] > GENERATIONS:
            raise AlignError(
                f"artifact {digest[:12]} comes after {GENERATIONS} others in a row; no lineage is that long."
            )
    return {digest: found[digest] for digest in order}


def descends(digest: str, ancestor: str, artifacts: Mapping[str, Artifact]) -> bool:
    waiting, seen = [digest], set()
    while waiting:
        if (found := waiting.pop()) == ancestor:
            return True
        if found not in seen:
            seen.add(found)
            waiting += artifacts[found].needs
    return False


def objects(artifacts: Iterable[Artifact]) -> dict[str, int]:
    """sha256 -> size of every file. Raises: AlignError when two manifests differ about one."""
    sizes: dict[str, int] = {}
    for artifact in artifacts:
        for name, entry in artifact.files.items():
            if sizes.setdefault(entry["sha256"], entry["size"]) != entry["size"]:
                other = sizes[entry["sha256"]]
                where = f"{name} of {artifact.stage} {artifact.short}"
                raise AlignError(f"{where} has {entry['size']:,} bytes by one manifest and {other:,} by another.")
    return sizes
