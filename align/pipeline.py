"""Recipes at work: stages in order, each fed with what earlier ones made, and nothing done twice.  `align run
recipes/helpful.yaml`

What can be checked without training is checked for all stages before the first one runs (align/rehearsal.py): files,
names, judges, templates, first rows. A run whose stages are all done, and its `--dry-run`, import no torch.
"""

from __future__ import annotations

import difflib
import importlib
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from align import memory, training
from align import recipe as recipes
from align.data.formats import Records
from align.ground.errors import InputError, Stopped
from align.ground.terminal import an
from align.inputs.fit import find_data, look
from align.recipe import Recipe, StageConfig, files_of, idle
from align.stage import why
from align.stage.execute import prepare, settings_of
from align.stage.expected import Expected
from align.stage.job import Job
from align.stage.rehearsal import rehearse
from align.store import Artifact, Hold, Store

KINDS: dict[str, tuple[str, ...]] = {
    "pretrain": ("model", "adapter"),
    "sft": ("adapter",),
    "pairs": ("data",),
    "reward": ("reward",),
    "dpo": ("adapter",),
    "ppo": ("adapter",),
    "grpo": ("adapter",),
    "rloo": ("adapter",),
    "reinforce_pp": ("adapter",),
    "merge": ("model", "classifier"),
    "evaluate": ("report",),
}
"""Kinds of stage, each in the module of its name, and the kinds of artifact it may make."""


@dataclass(frozen=True)
class Step:
    """A stage of a recipe and what is known of it before anything runs."""

    name: str
    config: Any
    done: Artifact | None
    """What it makes, where that is there."""
    why: str
    """Why it is to run; empty where it is done."""
    looks: Sequence[str] = ()
    """What its data are and how they are read, a line each."""
    looked: Mapping[str, Records[Any]] = field(default_factory=dict)
    """The rows that were looked at."""


class Pinned(Store):
    """The store as one recipe sees it: its stages' names mean what it makes, and that stays, wherever another process
    moves them."""

    def __init__(self, store: Store, held: Hold | None = None) -> None:
        super().__init__(store.path)
        self.made: dict[str, Artifact] = {}
        self.held = held

    def resolve(self, name: Artifact | str) -> Artifact:
        return super().resolve(self.made.get(name, name) if isinstance(name, str) else name)

    def tag(self, name: str, artifact: Artifact | str) -> str | None:
        if self.held:
            self.held.add(artifact)
        return super().tag(name, artifact)


def run(
    recipe: str | Path | Recipe,
    store: Store | None = None,
    *,
    from_: str | None = None,
    until: str | None = None,
    dry_run: bool = False,
    asked: memory.Question | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Artifact]:
    """Run a recipe's stages that are not done; the artifact of each by the stage's name.

    Args:
        from_: begin here; what earlier stages made is taken as it is in the store, even where the recipe has changed
            since.
        until: end here.
        dry_run: print a line per stage, run or skip and why, then what each that is to run takes of memory; return what
            is there.
        asked: the device and budget that memory is planned for; without it, this machine's and none.
        overrides: settings laid over the recipe, such as "stages.dpo.beta=0.2".
    Raises: InputError for whatever can be found wrong before the first stage runs; what a stage raises.
    """
    plan = recipe if isinstance(recipe, Recipe) else load(recipe, overrides)
    names = list(plan.stages)
    first = names.index(_known(names, from_, "--from")) if from_ else 0
    last = names.index(_known(names, until, "--until")) if until else len(names) - 1
    if last < first:
        raise InputError(f"--until {until} comes before --from {from_}; the order is {', '.join(names)}.")
    store = store or store_of(plan)
    with nullcontext() if dry_run else store.hold() as held:
        pinned = Pinned(store, held)
        made = _given(plan, names[first : last + 1], names[:first], pinned)
        steps = look_ahead(plan, names[first : last + 1], made, pinned)
        if dry_run:
            for name in made:
                print(f"{plan.name}/{name}: taken as it is, {made[name].short}")
            for step in steps:
                print(
                    f"{step.config.name}: " + (f"skip, {step.done.short} is there" if step.done else f"run, {step.why}")
                )
            if looks := [line for step in steps for line in step.looks]:
                print("\n" + "\n".join(looks))
            asked = asked or memory.Question.asked(None, None, dry_run)
            if planned := memory_plans(plan, steps, pinned, asked):
                print(f"\n{memory.report(planned, asked)}")
            return made | {step.name: step.done for step in steps if step.done}
        if trackers := {name for step in steps if not step.done for name in getattr(step.config, "report_to", ())}:
            training.trackers.check(sorted(trackers))
        for name in names[first : last + 1]:
            entry = plan.stages[name]
            try:
                artifact = _module(entry.kind).run(_bound(plan, name, made), pinned)
            except Stopped as error:
                raise Stopped(f"{error} Stages that are done stay done.") from error
            made[name] = pinned.made[f"{plan.name}/{name}"] = artifact
    return made


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check which stage hands what to which.

    Raises: InputError telling all that is wrong.
    """
    recipe = recipes.load_recipe(path, {kind: _module(kind).Config for kind in KINDS}, overrides)
    problems = []
    for name, entry in recipe.stages.items():
        problems += [
            f"{recipe.path}: stages.{name}.{text}" for _, text in idle(entry.config, _parent_kind(recipe, name))
        ]
        allowed = dict(_module(entry.kind).STAGE.inputs) | {key: ("data",) for key in files_of(entry.config)}
        for key, targets in entry.inputs.items():
            for target in targets:
                makes = _makes(recipe.stages[target].kind, recipe.stages[target].config)
                if not set(makes) & set(allowed[key]):
                    fit = [
                        n
                        for n, e in recipe.stages.items()
                        if n != name and set(_makes(e.kind, e.config)) & set(allowed[key])
                    ]
                    problems.append(
                        f"{recipe.path}: stages.{name}.{key}: {target} makes {an(makes[0])} artifact, but {entry.kind} "
                        f"needs {' or '.join(allowed[key])} there; "
                        + (f"name {' or '.join(fit)}." if fit else "add a stage that makes one.")
                    )
    if problems:
        raise InputError("\n".join(problems))
    return recipe


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


def look_ahead(recipe: Recipe, names: Sequence[str], made: Mapping[str, Artifact], store: Pinned) -> list[Step]:
    """What running `names` in order would do. `made` holds what stages before them made.

    Raises: InputError for an input that is missing or does not fit, also of stages whose turn comes later.
    """
    made = dict(made)
    steps = []
    with tempfile.TemporaryDirectory(prefix=".align-") as place:
        expected = Expected(store, Path(place))
        for name in names:
            step = _ahead(recipe, name, made, store, expected)
            steps.append(step)
            if step.done:
                made[name] = store.made[step.config.name] = step.done
    return steps


def _ahead(recipe: Recipe, name: str, made: Mapping[str, Artifact], store: Pinned, expected: Expected) -> Step:
    """What running one stage would do, rehearsed unless it is done; where it is to run, `expected` gets what it is to
    make.

    Raises: InputError.
    """
    entry = recipe.stages[name]
    stage = _module(entry.kind).STAGE
    waiting = any(t not in made for targets in entry.inputs.values() for t in targets)
    config = _bound(recipe, name, made)
    try:
        job = prepare(stage, config, expected)
        if not waiting and (done := store.asked(job.key)):
            return Step(name, config, done, "")
        config.check_parents(job.parents)
        why = _why_waiting(recipe, name, config, made, store) if waiting else job.why
        looked = look(config, stage.reads(config), job.data)
        rehearsed = rehearse(job, looked, expected.scratch / name)
    except InputError as error:
        files = {
            key: getattr(config, key)
            for key in files_of(config)
            if key not in entry.inputs and getattr(config, key) is not None
        }
        told = str(error) if str(error).startswith(f"{config.name}:") else f"{config.name}: {error}"
        raise InputError(f"{told}{_how_made(recipe, files, str(error))}") from error
    expected.promise(config.name, _will_make(entry.kind, config, job), job, rehearsed.renderer, rehearsed.answered)
    return Step(name, config, None, why, rehearsed.lines, looked)


def memory_plans(
    recipe: Recipe, steps: Sequence[Step], store: Pinned, asked: memory.Question
) -> dict[str, memory.MemoryPlan | str]:
    """The memory of every stage that is to run, or why there is no plan for it; what it builds on may be still to be
    made."""
    plans: dict[str, memory.MemoryPlan | str] = {}
    made: dict[str, memory.Known] = {}
    for step in steps:
        if step.done:
            continue
        try:
            setup = memory.workload_of(
                recipe.stages[step.name].kind, step.config, store, made, asked.device, step.looked
            )
            made[step.config.name] = memory.outcome(setup)
            plans[step.config.name] = memory.plan(setup)
        except memory.Unknown as error:
            plans[step.config.name] = str(error)
        except InputError:  # a stage before it has no plan
            plans[step.config.name] = "what it builds on is not made yet, and could not be planned"
    return plans


def _given(recipe: Recipe, names: Sequence[str], earlier: Sequence[str], store: Pinned) -> dict[str, Artifact]:
    """What stages before `--from` made, as far as it is there. Raises: InputError naming the first that is needed and
    is not."""
    find = store.held.add if store.held else store.resolve
    made = {name: find(ref) for name in earlier if not why.nothing_known(ref := f"{recipe.name}/{name}", store)}
    for name in names:
        for target in (t for targets in recipe.stages[name].inputs.values() for t in targets):
            if target in earlier and target not in made:
                if f"{recipe.name}/{target}" in store.pointers("refs"):
                    store.resolve(f"{recipe.name}/{target}")  # says how it is damaged
                missing = f"there is no {recipe.name}/{target} in {store.path}"
                raise InputError(
                    f"--from {names[0]}: {name} needs {target}, but {missing}. Run it first: --from {target}."
                )
    store.made |= {f"{recipe.name}/{name}": artifact for name, artifact in made.items()}
    return made


def _bound(recipe: Recipe, name: str, made: Mapping[str, Artifact]) -> Any:
    """A stage's config with refs for stages: results are named after them. A data file is named by digest, which no
    path can be."""
    entry = recipe.stages[name]
    config: StageConfig = entry.bind({target: f"{recipe.name}/{target}" for target in recipe.stages})
    data = {
        key: made[t].digest
        for key, targets in entry.inputs.items()
        if key in files_of(config)
        for t in targets
        if t in made
    }
    return config.model_copy(update=data)


def _how_made(recipe: Recipe, given: Mapping[str, Any], error: str) -> str:
    """What the comment at the top of a recipe says, where `error` is that a data file is not there: its first
    paragraph, and those that name the file."""
    files = [Path(value).name for value in map(str, given.values()) if value in error and not Path(value).exists()]
    if not files:
        return ""
    lines = takewhile(lambda line: line.startswith("#"), recipe.path.read_text(encoding="utf-8").splitlines())
    blocks = [" ".join(block.split()) for block in "\n".join(line[1:].strip() for line in lines).split("\n\n")]
    said = [block for i, block in enumerate(blocks) if block and (i == 0 or any(name in block for name in files))]
    return f"\n{recipe.path} says: {' '.join(said)}" if said else ""


def _why_waiting(recipe: Recipe, name: str, config: Any, made: Mapping[str, Artifact], store: Pinned) -> str:
    """Why a stage is to run whose inputs are made anew before it: those inputs, and its own settings that changed."""
    if unknown := why.nothing_known(config.name, store):
        return unknown
    entry = recipe.stages[name]
    anew = [
        f"its {role} is made anew by {recipe.name}/{target}"
        for role, targets in entry.inputs.items()
        for target in targets
        if target not in made
    ]
    files = {key: getattr(config, key) for key in files_of(config) if key not in entry.inputs}
    data = {key: find_data(store, key, file)[1] for key, file in files.items() if file is not None}
    settings = settings_of(_module(entry.kind).STAGE, config, _parent_kind(recipe, name))
    if "adapter" in (last := store.resolve(config.name).config):
        settings.setdefault("adapter", last["adapter"])  # of an adapter that is trained on, which is not known yet
    if settings.get("max_length", 0) > last.get("max_length", settings.get("max_length", 0)):
        # which may be the context, and that of the base to come is not known yet
        settings["max_length"] = last["max_length"]
    asked = {"settings": settings, "data": data}
    return "; ".join([*anew, *why.against_last(asked, entry.inputs.keys(), config.name, store)])


def _parent_kind(recipe: Recipe, name: str) -> str | None:
    """The kind of artifact that an earlier stage hands to this one as its parent; None where it has no such parent."""
    target = next(iter(recipe.stages[name].inputs.get("parent", ())), None)
    return _makes(recipe.stages[target].kind, recipe.stages[target].config)[0] if target else None


def _makes(kind: str, config: Any) -> tuple[str, ...]:
    """The kinds of artifact that a stage makes."""
    return {"full": ("model",), "lora": ("adapter",)}[config.method] if kind == "pretrain" else KINDS[kind]


def _will_make(kind: str, config: Any, job: Job) -> str:
    """The kind of artifact that a stage makes of inputs that are known."""
    makes = _makes(kind, config)
    return "classifier" if "classifier" in makes and job.parents["parent"].kind == "reward" else makes[0]


def _known(names: Sequence[str], name: str, flag: str) -> str:
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"the recipe has {', '.join(names)}."
        raise InputError(f"{flag} {name}: no such stage; {hint}")
    return name


def _module(kind: str) -> Any:
    return importlib.import_module(f"align.{kind}")
