"""Why a stage is to run: what differs between what is asked and what its name stands for. Small files only, no
torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from align.store import Artifact, Store

SHORT = 12
MOVES = "and moves to the new one"
"""What becomes of a name that is taken."""


def why(asked: Mapping[str, Any], key: str, name: str, store: Store) -> str:
    """The reason in words for a key that was not asked before; `asked` is what the key is the hash of, `name` what the
    result is called."""
    reason = nothing_known(name, store) or _since(asked, store.resolve(name), store)
    step = checkpoint(key, store)
    return f"{reason}; it goes on from step {step}" if step else reason


def nothing_known(name: str, store: Store) -> str:
    """Why there is nothing to compare a run with, in words; empty where `name` stands for an artifact."""
    path = store.path / "refs" / name
    if not path.is_file():
        return "nothing has its name yet"
    digest = store.pointer(path)
    return "" if digest and store.manifest_path(digest).exists() else f"{path} is damaged: it names no artifact"


def against_last(asked: Mapping[str, Any], open_: Collection[str], name: str, store: Store) -> list[str]:
    """What differs from the artifact that `name` stands for, in those parts that `asked` has. Data named in `open_` is
    not known yet."""
    old = store.resolve(name)
    known = {key: digest for key, digest in old.data.items() if key.partition("/")[0] in open_}
    return list(_differences({**asked, "data": {**known, **asked["data"]}}, old, store))


def _since(asked: Mapping[str, Any], old: Artifact, store: Store) -> str:
    if old.stage != asked["stage"]:
        return f"its name stands for what {old.stage} made, {old.short}, {MOVES}"
    return "; ".join(_differences(asked, old, store)) or f"its name stands for what another run made, {MOVES}"


def checkpoint(key: str, store: Store) -> int:
    """The step that a stopped or killed run of this key left a checkpoint of; 0 where there is none."""
    found = (store.keyed_path("runs", key) / "checkpoints").glob("checkpoint-*")
    return max((int(path.name.split("-")[1]) for path in found), default=0)


def _differences(new: Mapping[str, Any], old: Artifact, store: Store) -> Iterator[str]:
    """Each input of `new`, a manifest or the part of one that is known before a run, that is not `old`'s."""
    yield from _settings(old.config, new["settings"])
    yield from _inputs("data", old.data, new["data"], store)
    if "parents" in new:
        yield from _inputs("parents", old.parents, new["parents"], store)
    if "base" in new and not _follows(new, old):
        yield from _base(old.base, new["base"])
    if new.get("version", old.version) != old.version:
        yield f"{old.stage} gives other results since version {new['version']} (it was made by version {old.version})"


def _settings(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Settings that changed: "adapter.rank 8 -> 16"; of judges and templates, which stand for files, what happened to
    the file."""
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before == after or (key == "precision" and after == "auto"):  # a manifest records what auto turned out to be
            continue
        name = f"{prefix}{key}"
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _settings(before, after, f"{name}.")
        elif name == "judge" or name.startswith("judges."):
            yield f"{name}: {_judge(before, after)}"
        elif name == "chat_template":
            yield f"{name}: {_template(before)} -> {_template(after)}"
        else:
            yield f"{name} {_value(before)} -> {_value(after)}"


def _value(value: object) -> object:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else value


def _judge(before: str | None, after: str | None) -> str:
    """Judges stand in settings as "<sha256 of the file>:<function>"."""
    if before is None or after is None:
        return "it is no judge any more" if after is None else "a new judge"
    (file, function), (new_file, new_function) = before.split(":"), after.split(":")
    parts = [f"function {function} -> {new_function}"] if function != new_function else []
    return ", ".join(
        parts + ([f"the file's content changed ({file[:SHORT]} -> {new_file[:SHORT]})"] if file != new_file else [])
    )


def _template(setting: str | None) -> str:
    return "the model's own" if setting is None else setting if setting == "plain" else f"a file ({setting[:SHORT]})"


def _inputs(kind: str, old: Mapping[str, str], new: Mapping[str, str], store: Store) -> Iterator[str]:
    for name in [*new, *(name for name in old if name not in new)]:
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if after is None:
            yield f"{name} is no input any more"
        elif before is None:
            yield f"{name} is a new input"
        elif kind == "data":
            yield f"the content of {name} changed ({before[:SHORT]} -> {after[:SHORT]})"
        else:
            yield f"its {name} is another one ({_parent(before, after, store)})"


def _parent(before: str, after: str, store: Store) -> str:
    """Which artifacts, and why the one is not the other where one stage made both."""
    new = store.resolve(after)
    if not store.manifest_path(before).exists():
        return f"{before[:SHORT]} -> {store.label(new)} {new.short}"
    old = store.resolve(before)
    said = f"{store.called_now(old)} {before[:SHORT]} -> {store.label(new)} {new.short}".lstrip()
    if old.stage != new.stage:
        return f"{said}: {old.stage} -> {new.stage}"
    changed = {**new.manifest, "settings": new.config}
    return ": ".join([said, *(["; ".join(found)] if (found := list(_differences(changed, old, store))) else [])])


def _follows(new: Mapping[str, Any], old: Artifact) -> bool:
    """Whether the base changed only because the parent, which it is or which it comes from, did."""
    return bool(new.get("parents")) and new["parents"] != old.parents


def _base(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Iterator[str]:
    if old == new:
        return
    if old is None or new is None:
        yield "it has a base now" if old is None else "it has no base any more"
        return
    if old["quantize"] != new["quantize"]:
        yield f"base.quantize {old['quantize'] or 'none'} -> {new['quantize'] or 'none'}"
    if old["digest"] != new["digest"]:
        what = (
            f"the files of its base {new['model']} changed"
            if old["model"] == new["model"]
            else f"base {old['model']} -> {new['model']}"
        )
        yield f"{what} ({old['digest'][:SHORT]} -> {new['digest'][:SHORT]})"
    elif (old["model"], old["revision"]) != (new["model"], new["revision"]):
        yield f"base {_source(old)} -> {_source(new)}, with the same files"


def _source(base: Mapping[str, Any]) -> str:
    return f"{base['model']}@{base['revision'][:SHORT]}" if base["revision"] else str(base["model"])
