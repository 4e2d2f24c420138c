"""What several runs of one thing differ in beside their seed. Data and bases that are artifacts are held against each
other by what made them, files by their content: under each seed a recipe makes its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.report.text import SHORT
from align.store import Artifact, Store
from align.store.artifact import STORED
from align.store.graph import by_data, data_artifacts


def unlike(store: Store, runs: Sequence[Artifact]) -> list[str]:
    """A sentence on what differs between the first and the others, whose settings are alike; none where nothing does.
    Parents are held against each other by what made them, too: every seed has its own."""
    look = _Look(store, by_data(data_artifacts(store)))
    found: dict[str, None] = {}
    for run in runs[1:]:
        differ = [*look.data(runs[0], run), *look.base(runs[0], run), *look.parents(runs[0], run)]
        differ += ["text contract"] if run.text != runs[0].text else []
        differ += ["version of the stage"] if run.version != runs[0].version else []
        found |= dict.fromkeys(differ)
    if not found:
        return []
    return [
        f"these runs differ in more than their seed: {', '.join(found)}; their spread is not that of seeds alone",
    ]


class _Look:
    """`made`: sha256 -> the data artifacts whose file of data has it."""

    def __init__(self, store: Store, made: Mapping[str, Sequence[Artifact]]) -> None:
        self.store, self.made = store, made
        self.known: dict[tuple[str, str], list[str]] = {}

    def artifacts(self, one: Artifact, other: Artifact) -> list[str]:
        """What differs of two artifacts and of all that they were made from, but for seeds: STAGE.SETTING."""
        pair = (one.digest, other.digest)
        if one.digest == other.digest or pair in self.known:
            return self.known.get(pair, [])
        self.known[pair] = []  # met again where rows were turned into others and back
        if one.stage != other.stage:
            self.known[pair] = [f"{one.stage} in place of {other.stage}"]
            return self.known[pair]
        keys = sorted({*one.config, *other.config} - {"seed"})
        found = [f"{one.stage}.{key}" for key in keys if one.config.get(key) != other.config.get(key)]
        found += [f"version of {one.stage}"] if one.version != other.version else []
        found += [*self.data(one, other), *self.base(one, other), *self.parents(one, other)]
        self.known[pair] = found
        return found

    def parents(self, one: Artifact, other: Artifact) -> list[str]:
        found: list[str] = []
        for role in sorted({*one.parents, *other.parents}):
            if role in one.parents and role in other.parents:
                found += self.artifacts(self.store.load(one.parents[role]), self.store.load(other.parents[role]))
            else:
                found.append(f"{one.stage}.{role}")
        return found

    def data(self, one: Artifact, other: Artifact) -> list[str]:
        """Of files, by their content, which; of data artifacts what made them."""
        found: list[str] = []
        for key in sorted({*one.data, *other.data}):
            a, b = one.data.get(key, ""), other.data.get(key, "")
            if a == b:
                continue
            ways = [self.artifacts(x, y) for x in self.made.get(a, ()) for y in self.made.get(b, ())]
            files = [f"{one.stage}.{key} ({a[:SHORT] or 'none'} and {b[:SHORT] or 'none'})"]
            found += sorted(ways, key=len)[0] if ways else files
        return found

    def base(self, one: Artifact, other: Artifact) -> list[str]:
        a, b = one.base, other.base
        if a == b:
            return []
        if not a or not b or {**a, "model": "", "digest": ""} != {**b, "model": "", "digest": ""}:
            return ["base"]
        if not a["model"].startswith(STORED) or not b["model"].startswith(STORED):
            return ["base"]
        return self.artifacts(*(self.store.load(of["model"].removeprefix(STORED)) for of in (a, b)))
