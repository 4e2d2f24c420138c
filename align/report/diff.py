"""How two artifacts differ: settings, data, base, text contract, parents, metrics, cost and files, behind `align diff`.
No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from textwrap import fill

from align.folders.adapter import SHAPE
from align.ground.errors import AlignError
from align.ground.json import Json
from align.report.text import SHORT, all_names, fitted, name_of, value_text
from align.store import Artifact, Store

Change = Json
"""{"a": …, "b": …}, without the side that has nothing; metrics and costs also have "difference", b - a."""


def diff(store: Store, a: str | Artifact, b: str | Artifact) -> Json:
    """`a` and `b` (name, digest, kind, stage, version), by section what differs: dotted key -> Change, and under `same`
    how many keys of each section do not.

    Raises: InputError for an unknown ref; AlignError when one is damaged.
    """
    one, other = store.resolve(a), store.resolve(b)
    parts = _parts(store, one, other)
    return {"a": _side(store, one, a), "b": _side(store, other, b), **_sections(parts), "same": _same(parts)}


def _side(store: Store, artifact: Artifact, ref: str | Artifact) -> dict[str, str]:
    name = name_of(store, artifact, ref)
    return {"name": name, "digest": artifact.digest, "kind": artifact.kind, "stage": artifact.stage}


Parts = dict[str, tuple[Mapping[str, object], Mapping[str, object]]]
"""Section -> what the one and the other have there."""


def _parts(store: Store, one: Artifact, other: Artifact) -> Parts:
    costs = store.costs()
    made = [{"kind": x.kind, "stage": x.stage, "version": x.version} for x in (one, other)]
    cost = [_cost(costs.get(x.digest, {})) for x in (one, other)]
    config = settings(store, (one, other))
    return {
        "made by": (made[0], made[1]),
        "config": (config[0], config[1]),
        "data": (one.data, other.data),
        "base": (one.base or {}, other.base or {}),
        "text": (one.text or {}, other.text or {}),
        "parents": (one.parents, other.parents),
        "metrics": (one.metrics, other.metrics),
        "files": (_hashes(one), _hashes(other)),
        "cost": (cost[0], cost[1]),
    }


def settings(store: Store, artifacts: Sequence[Artifact]) -> list[Json]:
    """The settings of each; where their `adapter.targets` differ, "all-linear" gives way to the modules that it came
    to, which is what an artifact that goes on from it records."""
    found = [artifact.config for artifact in artifacts]
    adapters = [config.get("adapter") for config in found]
    targets = [adapter.get("targets") for adapter in adapters if isinstance(adapter, dict)]
    if all(one == targets[0] for one in targets):
        return found
    for place, (artifact, adapter) in enumerate(zip(artifacts, adapters, strict=True)):
        if isinstance(adapter, dict) and adapter.get("targets") == "all-linear":
            with suppress(AlignError, LookupError, ValueError):  # one that has no such file, or another in its place
                found[place] = {**artifact.config, "adapter": adapter | {"targets": _modules(store, artifact)}}
    return found


def _modules(store: Store, artifact: Artifact) -> list[str]:
    """The modules, by ends of their names, that an artifact's last adapter is on. Raises: ValueError, KeyError and
    AlignError where nothing says so."""
    places = [path.split("/")[1] for path in artifact.files if path.startswith("adapters/") and path.endswith(SHAPE)]
    shape = json.loads(store.read(artifact, f"adapters/{max(map(int, places))}/{SHAPE}"))
    return sorted(shape["target_modules"])


def _sections(parts: Parts) -> dict[str, dict[str, Change]]:
    """What differs, by section."""
    return {title: _changes(*sides, numbers=title in ("metrics", "cost")) for title, sides in parts.items()}


def _same(parts: Parts) -> dict[str, int]:
    """How many keys do not differ, by section."""
    return {title: len({*flat(a), *flat(b)}) - len(_changes(a, b)) for title, (a, b) in parts.items()}


def _hashes(artifact: Artifact) -> dict[str, str]:
    return {path: entry["sha256"] for path, entry in artifact.files.items()}


def _cost(cost: Mapping[str, object]) -> Json:
    return {key: value for key, value in cost.items() if key != "artifact"}


def _changes(a: Mapping[str, object], b: Mapping[str, object], *, numbers: bool = False) -> dict[str, Change]:
    before, after = flat(a), flat(b)
    found: dict[str, Change] = {}
    for key in sorted({*before, *after}):
        sides = {name: side[key] for name, side in (("a", before), ("b", after)) if key in side}
        if len(sides) == 2 and (type(sides["a"]), sides["a"]) == (type(sides["b"]), sides["b"]):
            continue
        found[key] = sides
        difference = _difference(sides) if numbers else None
        if difference is not None:
            found[key]["difference"] = difference
    return found


def _difference(change: Change) -> int | float | None:
    """b - a, where both are numbers."""
    a, b = change.get("a"), change.get("b")
    if isinstance(a, bool) or isinstance(b, bool) or not isinstance(a, int | float) or not isinstance(b, int | float):
        return None
    return b - a


def flat(values: Mapping[str, object], prefix: str = "") -> Json:
    """Nested keys with dots; an empty dict is a value."""
    found: Json = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def diff_text(store: Store, a: str | Artifact, b: str | Artifact, width: int | None = None) -> str:
    """`diff` for reading, in at most `width` characters, if any: one line for each difference, a -> b."""
    artifacts = {"a": store.resolve(a), "b": store.resolve(b)}
    one, other = _side(store, artifacts["a"], a), _side(store, artifacts["b"], b)
    if one["digest"] == other["digest"]:
        return f"{one['name']} and {other['name']} are one artifact, {one['digest'][:SHORT]}."
    parts = _parts(store, artifacts["a"], artifacts["b"])
    found = _sections(parts)
    head = [
        [side, x["name"], f"{x['kind']} by {x['stage']}", x["digest"][:SHORT]] for side, x in (("a", one), ("b", other))
    ]
    lines, left = fitted(head, width, name=1), None if width is None else width - 9
    for title, changes in found.items():
        rows = [_row(store, title, key, change) for key, change in changes.items()]
        lines += [f"{'' if index else title:<9}{row}" for index, row in enumerate(fitted(rows, left))]
    same = [f"{title} {count}" for title, count in _same(parts).items() if count and title != "made by"]
    last = f"same: {', '.join(same)}" if same else ""
    return "\n".join([*lines, *([fill(last, width) if width else last] if last else [])])


def _row(store: Store, title: str, key: str, change: Change) -> list[str]:
    if title == "files":
        return [key, "changed" if len(change) == 2 else f"only in {next(iter(change))}"]

    def side(name: str) -> str:
        if name not in change:
            return "absent"
        value = change[name]
        named = (all_names(store, str(value)) or "unnamed") + "  " if title == "parents" else ""
        return named + value_text(value)

    difference = change.get("difference")
    signed = f"({_signed(difference)})" if isinstance(difference, int | float) else ""
    return [key, side("a"), "->", side("b"), signed]


def _signed(number: int | float) -> str:
    return f"{number:+d}" if isinstance(number, int) else f"{number:+.6g}"
