"""What stands beside a recipe's stages, in words: settings of other tools there, and those of a file without stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from align.recipe.settings import StageConfig
from align.recipe.telling import elsewhere
from align.recipe.telling.problems import Path, holds, problems


def keyed(setting: str) -> str:
    """A setting as a recipe writes it, where a stage is named by its key."""
    return "the stage's key below `stages`" if setting.rpartition(".")[2] == "name" else setting


def hint(key: str, configs: Iterable[type[StageConfig]]) -> str | None:
    """`elsewhere.hint` on what is set for several stages: of those that train, before what it is of others."""
    every = [*configs]
    train = partial(_has, [config for config in every if "learning_rate" in config.model_fields])
    return elsewhere.hint(key, train if elsewhere.ours(key, train) else partial(_has, every), keyed)


def _has(configs: Iterable[type[StageConfig]], setting: str) -> bool:
    return any(holds(config, setting) for config in configs)


def without_stages(
    kinds: Mapping[str, type[StageConfig]], values: Mapping[str, object]
) -> tuple[list[tuple[Path, str]], str]:
    """(what is wrong with the values of keys that we have, a sentence on those that are right) in a file that has no
    stages, as another tool's has none."""
    found: list[tuple[Path, str]] = []
    right: list[str] = []
    known = {"name", "stages", *(key for config in kinds.values() for key in config.model_fields)}
    for key, value in values.items():
        kind = next((kind for kind in ("sft", *kinds) if kind in kinds and key in kinds[kind].model_fields), None)
        if kind is None or key == "name":
            continue
        wrong = [
            (path, text) for path, text in problems(kinds[kind], {key: value}, kind, ".".join) if path[:1] == (key,)
        ]
        found += wrong
        right += [] if wrong else [key]
    is_of_others = bool(values.keys() - known)
    stays = f" What may stay as it is, beside `stages` and for all of them: {', '.join(right)}."
    return found, stays if right and is_of_others else ""
