"""Which stage of a recipe hands what to which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from align import recipe as recipes
from align.ground.errors import InputError
from align.ground.terminal import an
from align.recipe import Recipe, StageConfig, files_of, idle
from align.stage.catalogue import in_recipes, stage_of
from align.store import Artifact, Store


class _Settings(Mapping[str, type[StageConfig]]):
    """The settings of every kind of stage; a stage is imported when it is asked for, so that a recipe costs its own."""

    def __getitem__(self, kind: str) -> type[StageConfig]:
        if kind not in in_recipes():
            raise KeyError(kind)
        return stage_of(kind).config

    def __iter__(self) -> Iterator[str]:
        return iter(in_recipes())

    def __len__(self) -> int:
        return len(in_recipes())


def load(path: str | Path, overrides: Sequence[str] = (), sweeps: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check which stage hands what to which.

    Raises: InputError telling all that is wrong.
    """
    recipe = recipes.load_recipe(path, _Settings(), overrides, sweeps)
    if problems := dict.fromkeys(line for name in recipe.stages for line in _problems(recipe, name)):
        raise InputError("\n".join(problems))
    return recipe


def _problems(recipe: Recipe, name: str) -> Iterator[str]:
    """What is wrong with a stage's settings and inputs where it stands in the recipe."""
    entry = recipe.stages[name]
    where = f"{recipe.path}: stages.{entry.stage}"
    for _, text in idle(entry.config, parent_kind(recipe, name)):
        yield f"{where}.{text}"
    allowed = {**stage_of(entry.kind).inputs, **dict.fromkeys(files_of(entry.config), ("data",))}
    for key, targets in entry.inputs.items():
        for target in targets:
            makes = kinds(recipe, target)
            if set(makes) & set(allowed[key]):
                continue
            fit = [other for other in recipe.stages if other != name and set(kinds(recipe, other)) & set(allowed[key])]
            remedy = f"name {' or '.join(fit)}." if fit else "add a stage that makes one."
            yield (
                f"{where}.{key}: {target} makes {an(makes[0])} artifact, but {entry.kind} needs "
                f"{' or '.join(allowed[key])} there; {remedy}"
            )


def store_of(recipe: Recipe) -> Store:
    """The store a recipe names, else the default one.

    Raises: InputError where its stages name several.
    """
    named = {entry.config.store for entry in recipe.stages.values()}
    if len(named) > 1:
        found = ", ".join(sorted(name or "default" for name in named))
        raise InputError(
            f"{recipe.path}: all stages of a recipe share one store; found {found}. Set `store` once, beside stages."
        )
    return Store(named.pop())


def bound(recipe: Recipe, name: str, made: Mapping[str, Artifact]) -> StageConfig:
    """A stage's config with refs for stages: results are named after them. A data file is named by digest, which no
    path can be."""
    refs = {target: f"{recipe.name}/{target}" for target in recipe.stages}
    return recipe.stages[name].bind(refs, refs | {target: artifact.digest for target, artifact in made.items()})


def kinds(recipe: Recipe, name: str) -> tuple[str, ...]:
    """The kinds of artifact that a stage may make."""
    entry = recipe.stages[name]
    return stage_of(entry.kind).kinds(entry.config)


def parent_kind(recipe: Recipe, name: str) -> str | None:
    """The kind of artifact that an earlier stage hands to this one as its parent; None where it has no such parent."""
    targets = recipe.stages[name].inputs.get("parent", ())
    return kinds(recipe, targets[0])[0] if targets else None
