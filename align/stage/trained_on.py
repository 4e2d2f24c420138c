"""Which prompts stages trained on: noted by each in what it makes, so that no figure is measured on what reinforcement
learning trained on, and of every other figure it can be said how much of what it was measured on was trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path

from align.data import split
from align.data.records import Prompt, Record
from align.data.split import opening, openings
from align.ground.errors import InputError
from align.inputs.fit import root
from align.stage import catalogue
from align.store import Artifact, Store
from align.store.artifact import Lineage

FILE = "trained_on.jsonl"
"""In the artifact of every stage that trains: `opening` of each record that its steps took. 15 bytes a prompt."""
PERHAPS = "perhaps_trained_on.jsonl"
"""Beside it in what a rehearsal expects: of prompts that are taken only where groups are drawn anew, or rollouts are
left early."""
TO_COME = "0" * 64
"""The digest of data that are still to be made, in what a rehearsal expects."""


def note(folder: Path, openings: Iterable[str], file: str = FILE) -> None:
    (folder / file).write_bytes(b"".join(map(_row, sorted(set(openings)))))


def leave_out(
    store: Store, artifacts: Iterable[Artifact], prompts: list[Prompt], drop: bool
) -> tuple[list[Prompt], list[str]]:
    """The prompts that neither `artifacts` nor what they were made from was reinforced on, and what is to be said of
    the others.

    Raises: InputError for another one, unless they are to be dropped, and where none is left.
    """
    line = [node for node in lineage_of(store, artifacts) if FILE in node.files and _learns_from(node) == "rewards"]
    asked = {*openings(prompts)}
    before = {o: node for node in line for o in _noted(store, node, asked)}
    kept, seen = split.leave_out(prompts, before)
    if not seen:
        return prompts, []
    by, many = store.label(before[opening(seen[0])]), f"{len(seen):,} of {len(prompts):,}"
    if kept and drop:
        were, them = ("was", "it") if len(seen) == 1 else ("were", "them")
        return kept, [f"{many} prompts {were} left out: {by} was trained on {them}"]
    remedy = "Take others, or set `trained_on: drop` to leave such prompts out" if kept else "Take others"
    raise InputError(
        f"{seen[0].where}: {by} was trained on this prompt, one of {many} here, so what it answers says little of "
        f"other prompts. {remedy}; `hold_out` in training keeps prompts for measuring."
    )


def seen(
    store: Store,
    artifacts: Iterable[Artifact],
    records: Sequence[Record],
    what: str,
    own: Mapping[str, Collection[str]],
) -> tuple[int, list[str]]:
    """How many of the records have a prompt that `artifacts`, or what they were made from, was trained on, and what is
    to be said of it: a line for those that were on equally many, and for each that does not say. `own`: openings of
    more that is trained on, by the name of what trains."""
    asked_of = [*openings(records)]
    asked, found = set(asked_of), set[int]()
    by: dict[int, list[str]] = {}
    nodes = lineage_of(store, artifacts) if records else []
    noted = [(store.label(node), _noted(store, node, asked)) for node in nodes if FILE in node.files]
    for name, known in [*noted, *own.items()]:
        of_one = {i for i, o in enumerate(asked_of) if o in known}
        if of_one:
            by.setdefault(len(of_one), []).append(name)
            found |= of_one
    lines = [
        f"{n:,} of {len(records):,} {what} {'was' if n == 1 else 'were'} trained on by {', '.join(names)}"
        for n, names in by.items()
    ]
    silent = [store.label(node) for node in nodes if FILE not in node.files and _learns_from(node) != "nothing"]
    for name in silent:
        lines.append(f"{name} does not say which prompts it was trained on; some may be among these {what}")
    return len(found), lines


def not_known(
    store: Store, artifacts: Iterable[Artifact], data: str, prompts: Sequence[Prompt], *, drop: bool
) -> list[str]:
    """What is to be said ahead of a run where reinforcement learning may take prompts that are measured on: from the
    very `data` (a digest), or from data that are still to be made, where which it will take is not known; or those of
    `prompts` that it comes to only where it draws anew."""
    fate = "those are left out here, too" if drop else "those are refused here, after all training"
    known, remedy = f"and which ones is known only then: {fate}", "" if drop else ". Set `trained_on: drop`, or {}"
    asked = {*openings(prompts)}
    lines = []
    for node in lineage_of(store, artifacts):
        label, wholly = store.label(node), FILE not in node.files and _learns_from(node) == "rewards"
        if PERHAPS in node.files and (many := len(_noted(store, node, asked, PERHAPS))):
            said = f"{label} may come to train on {many:,} of {len(asked):,} prompts, {known}"
            lines.append(said + remedy.format("take others"))
        elif wholly and data in _trained_from(node):
            said = f"{label} trains on prompts of the same file, {known}"
            lines.append(said + remedy.format("measure on a file of its own"))
        elif wholly and TO_COME in _trained_from(node):
            said = f"{label} trains on prompts that are still to be made; should some of these be among them, {fate}"
            lines.append(said + remedy.format("measure on prompts that those are not made of"))
    return lines


def lineage_of(store: Store, artifacts: Iterable[Artifact]) -> list[Artifact]:
    """Artifacts and all that they were made from, each once."""
    nodes = (node for artifact in artifacts for node in _ancestors(store.lineage(artifact)))
    return list({node.digest: node for node in nodes}.values())


def _learns_from(node: Artifact) -> str:
    stage = catalogue.find(node.stage)
    return stage.learns_from if stage else "nothing"


def _trained_from(node: Artifact) -> set[str]:
    """Digests of its data, without what it holds out."""
    return {digest for name, digest in node.data.items() if root(name) == "data"}


def _noted(store: Store, node: Artifact, among: Collection[str], file: str = FILE) -> set[str]:
    """Those of some openings that a stage trained on; it may have trained on millions."""
    wanted = {_row(o): o for o in among}
    return {wanted[line] for line in BytesIO(store.read(node, file)) if line in wanted}


def _row(opening: str) -> bytes:
    return f'"{opening}"\n'.encode()


def _ancestors(node: Lineage) -> Iterator[Artifact]:
    yield node.artifact
    for before in [*node.parents.values(), *([node.base] if node.base else [])]:
        yield from _ancestors(before)
