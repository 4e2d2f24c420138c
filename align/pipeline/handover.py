"""Which stage of a recipe hands what to which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from align import recipe as recipes
from align.data.files import remote
from align.data.files.sources import SHARDS, suffix
from align.ground.errors import InputError
from align.ground.paths import near
from align.ground.terminal import an
from align.inputs.fit import find_file, root
from align.recipe import Recipe, StageConfig, files_of, idle, named_files
from align.stage.catalogue import in_recipes, stage_of
from align.store import Artifact, Store

MOST = 5
"""Stages that a remedy proposes."""


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


def load(
    path: str | Path, overrides: Sequence[str] = (), sweeps: Sequence[str] = (), store: Store | None = None
) -> Recipe:
    """Read a recipe and check which stage hands what to which. `store`, if another one than the recipe says, has what
    stages name beside each other.

    Raises: InputError telling all that is wrong, and with it which data files are not there.
    """
    try:
        recipe = recipes.load_recipe(path, _Settings(), overrides, sweeps, partial(_is_known, store))
        problems = [line for name in recipe.stages for line in _problems(recipe, name)]
    except recipes.Misread as error:
        recipe, problems = error.recipe, str(error).splitlines()
    if problems:
        raise InputError("\n".join(dict.fromkeys([*problems, *_missing(recipe)])))
    return recipe


def _is_known(store: Store | None, name: str, place: object) -> bool:
    """Whether an artifact has this name in `store`, else in the one that lies at `place`, or in the default one."""
    there = store or Store(place if isinstance(place, str) else None)
    return (there.path / "refs" / name).is_file()


def _missing(recipe: Recipe) -> Iterator[str]:
    """Which data files of a recipe are not there; a name without such an ending may be an artifact's, or the hub's."""
    for entry in recipe.stages.values():
        for key, value in named_files(entry.config).items():
            made = value in entry.inputs.get(root(key), ())
            if not made and suffix(Path(value)) in SHARDS and not remote.is_url(value) and find_file(value) is None:
                yield f"{recipe.setting(entry.stage, (root(key),))}: there is no file {value}.{near(value)}"


def _problems(recipe: Recipe, name: str) -> Iterator[str]:
    """What is wrong with a stage's settings and inputs where it stands in the recipe."""
    entry = recipe.stages[name]
    for path, text in idle(entry.config, parent_kind(recipe, name)):
        yield f"{recipe.setting(entry.stage, path)}{text.removeprefix('.'.join(path))}"
    allowed = {**stage_of(entry.kind).inputs, **dict.fromkeys(files_of(entry.config), ("data",))}
    for key, targets in entry.inputs.items():
        for target in targets:
            makes = kinds(recipe, target)
            if set(makes) & set(allowed[key]):
                continue
            yield (
                f"{recipe.setting(entry.stage, (key,))}: {recipe.stages[target].stage} makes {an(makes[0])} artifact, "
                f"but {entry.kind} needs {' or '.join(allowed[key])} there; {_remedy(recipe, name, key, allowed[key])}"
            )


def _remedy(recipe: Recipe, name: str, key: str, allowed: Sequence[str]) -> str:
    """Which stages could be named there, as they are called in the file; earlier ones before those to move."""
    stage, named = (
        recipe.stages[name].stage,
        {recipe.stages[target].stage for target in recipe.stages[name].inputs[key]},
    )
    order = list(dict.fromkeys(entry.stage for entry in recipe.stages.values()))
    fitting = {entry.stage for run, entry in recipe.stages.items() if {*kinds(recipe, run)} & {*allowed}}
    earlier = [other for other in order[: order.index(stage)] if other in fitting]
    if new := [other for other in earlier if other not in named]:
        return f"name {' or '.join(new[:MOST])}."
    if earlier:
        return "leave it out."
    later = [other for other in order[order.index(stage) + 1 :] if other in fitting]
    return f"move {' or '.join(later[:MOST])} above {stage} and name it." if later else "add a stage that makes one."


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
