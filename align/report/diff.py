"""How two artifacts differ: settings, data, base, text contract, parents, metrics, cost and files, behind `align diff`.
No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from textwrap import fill

from align.folders.adapter import SHAPE
from align.ground.errors import AlignError
from align.ground.json import Json
from align.report.text import SHORT, fits, fitted, name_of, time_text, value_text
from align.store import Artifact, Store
from align.store.artifact import STORED

ABSENT = "absent"
LONG = 16
"""Characters of a value that has a table with others as long where not all fit beside each other."""
Defaults = Callable[[str], Json]
"""Stage -> the defaults of its settings, by dotted key."""
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
    by = [{"kind": x.kind, "stage": x.stage, "version": x.version} for x in (one, other)]
    cost = [_cost(costs.get(x.digest, {})) for x in (one, other)]
    config = _resolved(store, (made("", one), made("", other)))
    return {
        "made by": (by[0], by[1]),
        "config": (config[0], config[1]),
        "data": (one.data, other.data),
        "base": (one.base or {}, other.base or {}),
        "text": (one.text or {}, other.text or {}),
        "parents": (one.parents, other.parents),
        "metrics": (one.metrics, other.metrics),
        "files": (_hashes(one), _hashes(other)),
        "cost": (cost[0], cost[1]),
    }


@dataclass(frozen=True)
class Made:
    """What a run was made with, or is being made with."""

    name: str
    stage: str
    config: Json
    inputs: Json
    """version, base, parents and data, as far as they are known."""
    artifact: Artifact | None
    """None of one that is not done, of which more settings come to be known."""


def made(name: str, artifact: Artifact) -> Made:
    """What an artifact was made with."""
    inputs = {key: getattr(artifact, key) for key in ("version", "base", "parents", "data")}
    return Made(name, artifact.stage, artifact.config, inputs, artifact)


def apart(
    store: Store, runs: Sequence[Made], defaults: Defaults = lambda _: {}
) -> tuple[dict[str, list[object]], int, dict[str, list[str]]]:
    """(settings that differ between the runs that have them, or, of one stage, between those that have them and others;
    how many all have alike; of several stages, what is left of each run). A setting that some have at its default and
    others not at all, as it has no effect there, does not differ, nor does one that a run does not have yet."""
    whole = [_with_inputs(store, run, config) for run, config in zip(runs, _resolved(store, runs), strict=True)]
    usual = [defaults(run.stage) for run in runs]
    keys = dict.fromkeys(key for one in whole for key in one)
    owned = {key: [one[key] for one in whole if key in one] for key in keys}
    shared = {key for key, values in owned.items() if len(values) == len(whole)}
    idle = {key for key in keys if key not in shared and _at_default(key, whole, usual)}
    done = [one for one, run in zip(whole, runs, strict=True) if run.artifact]
    one_stage = len({run.stage for run in runs}) == 1
    lacking = {key for key in keys if one_stage and key not in idle and any(key not in one for one in done)}
    differ = {key for key in keys if not equal(owned[key])} | lacking
    rows = {key: [one.get(key, ABSENT) for one in whole] for key in keys if key in differ}
    left = {
        run.name: [key for key in one if key not in shared | differ | idle]
        for run, one in zip(runs, whole, strict=True)
        if not one_stage
    }
    return rows, len(shared - differ), {name: some for name, some in left.items() if some}


def _with_inputs(store: Store, run: Made, config: Json) -> Json:
    """Settings by dotted key, then stage, base, parents and data, as people call them."""
    inputs = {"version of the stage" if key == "version" else key: value for key, value in run.inputs.items()}
    facts: Json = {"stage": run.stage, **{key: value for key, value in inputs.items() if value != {}}}
    base, parents = facts.get("base"), facts.get("parents")
    if isinstance(base, dict):
        facts["base"] = f"{base['model'].removeprefix(STORED)} {base['quantize'] or ''}".rstrip()
    if isinstance(parents, dict):
        facts["parents"] = {role: store.called_now(digest) or digest for role, digest in parents.items()}
    return flat({**config, **facts})


def _at_default(key: str, settings: Sequence[Json], usual: Sequence[Json]) -> bool:
    """Whether all have a setting at its default, or, as it has no effect, not at all."""
    return all(key in own and one.get(key, own[key]) == own[key] for one, own in zip(settings, usual, strict=True))


def equal(values: Sequence[object]) -> bool:
    return all((type(value), value) == (type(values[0]), values[0]) for value in values)


def _resolved(store: Store, runs: Sequence[Made]) -> list[Json]:
    """The settings of each; where their `adapter.targets` differ, "all-linear" gives way to the modules that it came
    to, which is what an artifact that goes on from it records."""
    found = [run.config for run in runs]
    adapters = [config.get("adapter") for config in found]
    targets = [adapter.get("targets") for adapter in adapters if isinstance(adapter, dict)]
    if all(one == targets[0] for one in targets):
        return found
    for place, (run, adapter) in enumerate(zip(runs, adapters, strict=True)):
        if run.artifact and isinstance(adapter, dict) and adapter.get("targets") == "all-linear":
            with suppress(AlignError, LookupError, ValueError):  # one that has no such file, or another in its place
                found[place] = {**run.config, "adapter": adapter | {"targets": _modules(store, run.artifact)}}
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
        # in a narrow terminal the long values of some do not cost all others their width
        long = [] if fits(rows, left) else [row for row in rows if max(map(len, row[1:])) > LONG]
        told = [*fitted([row for row in rows if row not in long], left), *fitted(long, left)]
        lines += [f"{'' if index else title:<9}{line}" for index, line in enumerate(told)]
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
        named = (store.called_now(str(value)) or "unnamed") + "  " if title == "parents" else ""
        return named + (time_text(str(value)) if (title, key) == ("cost", "finished") else value_text(value))

    difference = change.get("difference")
    signed = f"({_signed(difference)})" if isinstance(difference, int | float) else ""
    return [key, side("a"), "->", side("b"), signed]


def _signed(number: int | float) -> str:
    return f"{number:+d}" if isinstance(number, int) else f"{number:+.3g}"
