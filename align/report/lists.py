"""What lists of a store look like on a terminal: `align ls`, `align lineage`, `align gc`. No torch."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Required, TypedDict

from align.ground.errors import AlignError, InputError
from align.ground.json import Json
from align.report.text import SHORT, aligned, all_names, base_name, fits, fitted, name_of, size_text, time_text
from align.store import Artifact, Garbage, Graph, Lineage, Store, sizes
from align.store.garbage import size_of
from align.store.graph import objects_of
from align.store.remote.names import matched_by

RIGHT = ("SIZE", "ALONE", "SHARED")
"""Columns of numbers, which end on one edge."""


class Row(TypedDict, total=False):
    """A name of the store, in `align ls --json`."""

    name: Required[str]
    digest: Required[str]
    kind: Required[str]
    stage: str
    size: int
    finished: str | None
    alone: int
    shared: int
    shown: Json
    """By their names, the columns that were asked for."""


def ls_rows(store: Store, names: Sequence[str] = (), *, size: bool = False) -> list[Row]:
    """One row for each of these names, without any for every ref: name, digest, kind, stage, size, finished; with
    `size` also alone and shared, in bytes.

    A damaged name or artifact has the kind "damaged" and no more. Raises: AlignError with `size`, when a ref reaches
    what is damaged.
    """
    refs, costs = store.sound_refs(), store.costs()
    taken = sizes(Graph(store), refs) if size else {}
    rows: list[Row] = []
    for name in names or [*store.damaged_refs(), *refs]:
        digest = refs.get(name, "")
        try:
            artifact = store.load(digest) if digest else None
        except AlignError:
            artifact = None
        if artifact is None:
            rows.append({"name": name, "digest": digest, "kind": "damaged"})
            continue
        row: Row = {"name": name, "digest": digest, "kind": artifact.kind, "stage": artifact.stage}
        row |= {"size": artifact.size, "finished": costs[digest].get("finished") if digest in costs else None}
        if size:
            row |= {"alone": taken[name].alone, "shared": taken[name].shared}
        rows.append(row)
    return rows


def ls_table(store: Store, rows: Sequence[Row] | None = None, width: int | None = None, *, size: bool = False) -> str:
    """These rows, else all of `ls_rows`, as a table of at most `width` characters. A damaged artifact says so and hides
    no other."""
    rows = ls_rows(store, size=size) if rows is None else rows
    if not rows:
        return f"{store.path} holds no named artifact."
    last = ["SIZE", "ALONE", "SHARED"] if size else ["SIZE", "CREATED (UTC)"]
    lines = [["NAME", "KIND", "STAGE", "DIGEST", *last]]
    for row in rows:
        start = [row["name"], row["kind"]]
        if row["kind"] == "damaged":
            lines.append([*start, "align verify", row["digest"][:SHORT]])
            continue
        more = [_created(store, row)]
        if size:
            more = [size_text(row["alone"]), size_text(row["shared"])]
        lines.append([*start, row["stage"], row["digest"][:SHORT], size_text(row["size"]), *more])
    lines, gone = _narrower(lines, width, ["DIGEST"] if size else ["DIGEST", "CREATED (UTC)"])
    text = "\n".join(fitted(lines, width, [i for i, title in enumerate(lines[0]) if title in RIGHT]))
    if gone:
        text += f"\n\nToo narrow for {' and '.join(gone)}; --json has all."
    if not size:
        return text
    legend = "ALONE: what only this name needs, with all that it\ncomes from. SHARED: what another name needs as well."
    return f"{text}\n\n{size_text(store.size())} in all. {legend}"


def _created(store: Store, row: Row) -> str:
    """When it was made; of what was made elsewhere before when, as it came here then."""
    came = datetime.fromtimestamp(store.manifest_path(row["digest"]).stat().st_mtime, UTC).isoformat()
    return (time_text(row["finished"]) if row["finished"] else f"before {time_text(came)}").removesuffix(" UTC")


def _narrower(lines: list[list[str]], width: int | None, less: Sequence[str]) -> tuple[list[list[str]], Sequence[str]]:
    """(rows, titles of what was left out): without as few of the columns `less`, from the first on, as let the rows
    fit, and with all where even that does not."""
    for count in range(len(less) + 1):
        gone = [lines[0].index(title) for title in less[:count]]
        rows = [[cell for column, cell in enumerate(row) if column not in gone] for row in lines]
        if fits(rows, width):
            return rows, less[:count]
    return lines, ()


def matching(store: Store, refs: Sequence[str]) -> list[str]:
    """Refs, with every name that a pattern such as 'quickstart/dpo.*' stands for, in the order of numbers within names.

    Raises: InputError for a pattern that no name matches, and for what names only begin with.
    """
    names = sorted(store.pointers("refs"), key=_by_number)
    found: list[str] = []
    for ref in refs:
        matched = matched_by(ref, names, f"in {store.path} matches {ref!r}; `align ls` lists what is there.")
        if matched == [ref] and ref not in names and (begun := fnmatch.filter(names, f"{ref}.*")):
            some = f"{len(begun)} names begin" if len(begun) > 1 else "one name begins"
            raise InputError(f"no name in {store.path} is {ref}; {some} so: write '{ref}.*', in quotes.")
        found += matched if matched == [ref] else [name for name in matched if name not in found]
    return found


def named(store: Store, names: Sequence[str]) -> list[str]:
    """`matching`, of what is a name each. Raises: InputError for another, with the names that are near."""
    found, refs = matching(store, names), store.pointers("refs")
    for name in found:
        if name not in refs:
            raise InputError(f"{store.resolve(name).short} was asked for by its digest, and `align ls` lists names.")
    return found


def _by_number(name: str) -> list[tuple[float, str]]:
    """Puts max_steps-2 before max_steps-10."""
    parts = re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?|[^\d]+", name)
    return [(float(part), "") if part[0].isdigit() else (float("inf"), part) for part in parts]


def lineage_text(store: Store, ref: str | Artifact) -> str:
    """Where an artifact came from, as a tree with the role on each edge; an ancestor that appears again is only named.

    Raises: InputError for an unknown ref; AlignError when an ancestor is missing or damaged.
    """
    tree = store.lineage(ref)
    seen: set[str] = set()

    def below(node: Lineage, indent: str) -> Iterator[str]:
        if node.artifact.digest in seen:
            return
        seen.add(node.artifact.digest)
        edges = _edges(store, node)
        for index, (role, parent) in enumerate(edges):
            last = index == len(edges) - 1
            text = parent if isinstance(parent, str) else _line(store, parent.artifact, seen)
            yield f"{indent}{'└─' if last else '├─'} {role}: {text}"
            if isinstance(parent, Lineage):
                yield from below(parent, indent + ("   " if last else "│  "))

    return "\n".join([_line(store, tree.artifact, seen, name_of(store, tree.artifact, ref)), *below(tree, "")])


def _edges(store: Store, node: Lineage) -> list[tuple[str, Lineage | str]]:
    """What a node was made from: parents; where it has none, its base; and its data, which a manifest knows by their
    content alone: an artifact of the same rows is said to be equal to them."""
    edges: list[tuple[str, Lineage | str]] = list(node.parents.items())
    if not edges and node.base:
        edges = [("base", node.base)]
    elif not edges and node.artifact.base:
        edges = [("base", base_name(store, node.artifact.base))]
    for name, digest in sorted(node.artifact.data.items()):
        equal = node.data.get(name)
        edges.append((f"{name}, equal to", equal) if equal else (name, f"sha256 {digest[:SHORT]}"))
    return edges


def _line(store: Store, artifact: Artifact, seen: set[str], name: str | None = None) -> str:
    """One node of the tree."""
    known = name or all_names(store, artifact.digest) or artifact.short
    digest = "" if known == artifact.short else f"  {artifact.short}"
    return f"{known}  {artifact.kind} by {artifact.stage}{digest}{'  (above)' if artifact.digest in seen else ''}"


def lineage_json(store: Store, ref: str | Artifact) -> Json:
    """Lineage for programs: `artifact`, and by digest every `artifacts` of the tree with names, kind, stage, parents,
    base and data."""
    tree = store.lineage(ref)
    found: Json = {}
    names: dict[str, list[str]] = {}
    for name, digest in store.sound_refs().items():
        names.setdefault(digest, []).append(name)
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        artifact = node.artifact
        if artifact.digest not in found:
            about = {"names": names.get(artifact.digest, []), "kind": artifact.kind, "stage": artifact.stage}
            made = {name: data.artifact.digest for name, data in node.data.items()}
            found[artifact.digest] = {
                **about,
                **{"parents": artifact.parents, "base": artifact.base, "data": artifact.data, "data_artifacts": made},
            }
            waiting += [*node.parents.values(), *node.data.values(), *([node.base] if node.base else [])]
    return {"artifact": tree.artifact.digest, "artifacts": found}


def gc_text(garbage: Garbage, folder: Path, *, deleted: bool) -> str:
    """What a collection removed or would remove, and what it left."""
    rows = []
    for digest in garbage.artifacts:
        artifact = garbage.known.get(digest)
        about = (
            [f"{artifact.kind} by {artifact.stage}", digest[:SHORT], size_text(artifact.size)]
            if artifact
            else ["damaged", digest[:SHORT]]
        )
        rows.append(["", *about])
    lines = aligned(rows, right=(3,))
    for what, found in (
        ("artifact that no name reaches", garbage.artifacts),
        ("object that no artifact needs", garbage.objects),
        ("answer for what is gone", garbage.answers),
        ("leftover (caches, runs, unfinished files)", garbage.others),
    ):
        lines += [_count(len(found), what)] if found else []
    size = size_text(garbage.size)
    if not lines:
        lines.append(f"{folder}: nothing to remove.")
    elif deleted:
        lines.append(f"Removed: {size}.")
    else:
        lines.append(f"Nothing was removed: `align gc --delete` frees {size}.")
    if garbage.held:
        lines.append(
            f"Kept: {_count(len(garbage.held), 'artifact that no name reaches')}, but running or stopped work needs."
        )
    if garbage.stopped:
        size = size_text(sum(size_of(path / "checkpoints") for path in garbage.stopped))
        runs = "a stopped run" if len(garbage.stopped) == 1 else f"{len(garbage.stopped)} stopped runs"
        lines.append(f"Kept: checkpoints of {runs}, {size}; --checkpoints gives them up.")
    if garbage.arrived:
        size = size_text(sum(map(size_of, garbage.arrived)))
        lines.append(
            f"Kept: {_count(len(garbage.arrived), 'file of a pull')} that was stopped, {size}; --checkpoints gives "
            "them up."
        )
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    """`1 object that …`, `2 objects that …`."""
    noun, _, rest = what.partition(" ")
    return f"1 {what}" if number == 1 else f"{number:,} {noun}s {rest}"


def gc_rows(garbage: Garbage, *, deleted: bool) -> Json:
    """A collection for programs."""
    return {
        "deleted": deleted,
        "bytes": garbage.size,
        "artifacts": garbage.artifacts,
        **{
            key: list(map(str, getattr(garbage, key))) for key in ("objects", "answers", "others", "stopped", "arrived")
        },
        "held": garbage.held,
    }


def rm_text(store: Store, removed: Mapping[str, str | None]) -> str:
    """What became of the artifacts whose names were removed: which names still reach them, or that they can be
    collected.

    `removed` gives the digest that each name pointed at, None where it held none.
    """
    graph = Graph(store)
    refs = store.sound_refs()
    lines = []
    for name, digest in removed.items():
        lines.append(f"removed {name}" + (f"  {digest[:SHORT]}" if digest else ", which was damaged"))
        users = [ref for ref, target in refs.items() if digest in _reached(graph, target)]
        if users:
            lines.append(f"  still needed by {', '.join(users)}")
    before = {found for digest in removed.values() if digest for found in _reached(graph, digest)}
    kept = {found for target in refs.values() for found in _reached(graph, target)}
    if free := before - kept:
        objects = objects_of(graph.artifacts[digest] for digest in free & set(graph.artifacts))
        shared = objects_of(graph.artifacts[digest] for digest in kept & set(graph.artifacts))
        size = size_text(sum(size for digest, size in objects.items() if digest not in shared))
        lines.append(f"{_count(len(free), 'artifact that no name reaches')} now, {size}: `align gc` shows what can go.")
    return "\n".join(lines)


def _reached(graph: Graph, digest: str) -> set[str]:
    """What a digest reaches; itself alone where that cannot be known."""
    try:
        return set(graph.reached([digest]))
    except AlignError:
        return {digest}
