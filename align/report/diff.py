"""How two artifacts differ: settings, data, base, text contract, parents, metrics, cost and files, behind `align diff`.
No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.report.text import SHORT, aligned, name_of, value_text
from align.store import Artifact, Store

Change = dict[str, Any]
"""{"a": …, "b": …}, without the side that has nothing; metrics and costs also have "difference", b - a."""


def diff(store: Store, a: str | Artifact, b: str | Artifact) -> dict[str, Any]:
    """`a` and `b` (name, digest, kind, stage, version), and by section what differs: dotted key -> Change.

    Raises: InputError for an unknown ref; AlignError when one is damaged.
    """
    one, other = store.resolve(a), store.resolve(b)
    costs = store.costs()
    sides = {
        side: {
            "name": name_of(store, artifact, ref),
            "digest": artifact.digest,
            "kind": artifact.kind,
            "stage": artifact.stage,
        }
        for side, artifact, ref in (("a", one, a), ("b", other, b))
    }
    return {
        **sides,
        "made by": _changes(*({"kind": x.kind, "stage": x.stage, "version": x.version} for x in (one, other))),
        "config": _changes(one.config, other.config),
        "data": _changes(one.data, other.data),
        "base": _changes(one.base or {}, other.base or {}),
        "text": _changes(one.text or {}, other.text or {}),
        "parents": _changes(one.parents, other.parents),
        "metrics": _changes(one.metrics, other.metrics, numbers=True),
        "files": _changes(_hashes(one), _hashes(other)),
        "cost": _changes(*(_cost(costs.get(x.digest, {})) for x in (one, other)), numbers=True),
    }


def _hashes(artifact: Artifact) -> dict[str, str]:
    return {path: entry["sha256"] for path, entry in artifact.files.items()}


def _cost(cost: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cost.items() if key != "artifact"}


def _changes(a: Mapping[str, Any], b: Mapping[str, Any], *, numbers: bool = False) -> dict[str, Change]:
    before, after = _flat(a), _flat(b)
    found: dict[str, Change] = {}
    for key in sorted({*before, *after}):
        sides = {name: side[key] for name, side in (("a", before), ("b", after)) if key in side}
        if len(sides) == 2 and (type(sides["a"]), sides["a"]) == (type(sides["b"]), sides["b"]):
            continue
        found[key] = sides
        if (
            numbers
            and len(sides) == 2
            and all(isinstance(v, int | float) and not isinstance(v, bool) for v in sides.values())
        ):
            found[key]["difference"] = sides["b"] - sides["a"]
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys with dots; an empty dict is a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def diff_text(store: Store, a: str | Artifact, b: str | Artifact) -> str:
    """`diff` for reading: one line for each difference, a -> b."""
    found = diff(store, a, b)
    one, other = found.pop("a"), found.pop("b")
    if one["digest"] == other["digest"]:
        return f"{one['name']} and {other['name']} are one artifact, {one['digest'][:SHORT]}."
    head = [
        [side, x["name"], f"{x['kind']} by {x['stage']}", x["digest"][:SHORT]] for side, x in (("a", one), ("b", other))
    ]
    lines = aligned(head)
    for title, changes in found.items():
        rows = [_row(store, title, key, change) for key, change in changes.items()]
        lines += [f"{'' if index else title:<9}{row}" for index, row in enumerate(aligned(rows))]
    same = [title for title, changes in found.items() if not changes and title != "made by"]
    return "\n".join([*lines, *([f"same: {', '.join(same)}"] if same else [])])


def _row(store: Store, title: str, key: str, change: Change) -> list[str]:
    if title == "files":
        return [key, "changed" if len(change) == 2 else f"only in {next(iter(change))}"]

    def side(name: str) -> str:
        if name not in change:
            return "absent"
        value = change[name]
        named = next(iter(store.names(value)), "unnamed") + "  " if title == "parents" else ""
        return named + value_text(value)

    return [key, side("a"), "->", side("b"), f"({_signed(change['difference'])})" if "difference" in change else ""]


def _signed(number: int | float) -> str:
    return f"{number:+d}" if isinstance(number, int) else f"{number:+.6g}"
