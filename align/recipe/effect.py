"""Settings that have no effect beside the others: refused where a stage is given them, and left out of what is
recorded.

A config says itself which these are (`Settings.without_effect`). Given is what stands with the stage or on its command
line; what a recipe has beside `stages` is a default for those stages in which it means something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from align.recipe.settings import Runtime, Settings, markers

Path = tuple[str, ...]


def given(config: Settings) -> Iterator[Path]:
    """Keys of the settings that were given, those of a group one by one."""
    for name in sorted(config.model_fields_set):
        value = getattr(config, name)
        if isinstance(value, Settings):
            yield from ((name, inner) for inner in sorted(value.model_fields_set))
        else:
            yield (name,)


def idle(config: Settings, parent: str | None, name: Callable[[Path], str] = ".".join) -> list[tuple[Path, str]]:
    """Given settings without effect: (keys, sentence). `parent` is the kind of artifact that the parent is, where that
    is known; `name` spells a key."""
    why = config.without_effect(parent)
    found = [(path, reason(path, why)) for path in given(config)]
    return [(path, f"{name(path)} has no effect: {said}") for path, said in found if said is not None]


def set_aside(config: Settings, path: Path) -> None:
    """Have a setting count as not given, as where a flag or --set made it lose its effect."""
    group = getattr(config, path[0]) if len(path) > 1 else config
    group.model_fields_set.discard(path[-1])


def as_defaults(config: Settings, defaults: Mapping[str, object], own: Mapping[str, object]) -> None:
    """Have what a recipe says for all its stages count as not given, but for what the stage's `own` settings name
    again."""
    for key in defaults.keys() & config.model_fields_set:
        group = getattr(config, key)
        if key not in own:
            config.model_fields_set.discard(key)
            continue
        general, special = defaults[key], own[key]
        if isinstance(group, Settings) and isinstance(general, Mapping) and isinstance(special, Mapping):
            group.model_fields_set.difference_update(general.keys() - special.keys())


def resolved(config: Settings, parent: str | None = None) -> dict[str, Any]:
    """The settings as JSON, without runtime fields and without those that have no effect: what stands in a manifest and
    in the key of what is asked. `parent` as in `idle`."""
    plain = config.model_dump(mode="json")
    why = config.without_effect(parent)

    def kept(group: Settings, prefix: Path) -> Iterator[tuple[str, object]]:
        for name, value in group:
            path = (*prefix, name)
            if Runtime in markers(type(group).model_fields[name]) or reason(path, why) is not None:
                continue
            yield name, dict(kept(value, path)) if isinstance(value, Settings) else _at(plain, path)

    return dict(kept(config, ()))


def reason(path: Path, why: Mapping[str, str]) -> str | None:
    """What `without_effect` says of a setting, or of the group that it is in."""
    names = [".".join(path[:n]) for n in range(1, len(path) + 1)]
    return next((why[name] for name in names if name in why), None)


def _at(values: Any, path: Path) -> Any:
    for key in path:
        values = values[key]
    return values
