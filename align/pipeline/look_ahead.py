"""What running a recipe would do, found out without weights before anything runs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isfunction
from itertools import takewhile
from pathlib import Path
from typing import Any

from align import memory
from align import recipe as recipes
from align.data.formats import Records
from align.ground.errors import InputError
from align.ground.progress import Task
from align.inputs.fit import find_data, root
from align.inputs.looked import Ends, look
from align.memory.text import in_few
from align.pipeline.handover import bound, parent_kind
from align.pipeline.pinned import Pinned
from align.recipe import Recipe, StageConfig, named_files
from align.recipe.telling.problems import nearest
from align.stage import why
from align.stage.ahead.dry_run import memory_setup
from align.stage.ahead.expected import Expected
from align.stage.ahead.rehearsal import rehearse
from align.stage.catalogue import stage_of
from align.stage.layout import as_run
from align.stage.question import Question, prepare, settings_of
from align.store import Artifact
from align.training.telling import tracker_names

ASKED_FOR = re.compile(r"'(?P<name>[^'/]+)' is no name and no digest")
"""What a store says of a name without a recipe's before it that it does not have."""
ABOUT = re.compile(r"(?P<setting>[\w.]+)(/\S+)?(: | is )")
"""What is said of a setting, or of one of the files in it."""


@dataclass(frozen=True)
class Step:
    """A stage of a recipe and what is known of it before anything runs."""

    name: str
    title: str
    """What its result is called."""
    config: StageConfig
    done: Artifact | None
    """What it makes, where that is there."""
    why: str
    """Why it is to run; empty where it is done."""
    looks: Sequence[str] = ()
    """What its data are and how they are read, a line each."""
    looked: Mapping[str, Records[Any]] = field(default_factory=dict)
    """The rows that were looked at."""


def look_ahead(recipe: Recipe, names: Sequence[str], made: Mapping[str, Artifact], store: Pinned) -> list[Step]:
    """What running `names` in order would do. `made` holds what stages before them made.

    Raises: InputError for an input that is missing or does not fit, also of stages whose turn comes later.
    """
    made, seen = dict(made), Ends()
    steps: list[Step] = []
    with tempfile.TemporaryDirectory(prefix=".align-") as place:
        expected = Expected(store, Path(place))
        done = _look_at_files(recipe, names, made, store, expected, seen)
        made |= done
        for name in names:
            if name in done:
                steps.append(Step(name, f"{recipe.name}/{name}", bound(recipe, name, made), done[name], ""))
                continue
            with Task(f"looking ahead at {name}"):
                steps.append(_ahead(recipe, name, made, store, expected, seen))
    return steps


def _look_at_files(
    recipe: Recipe, names: Sequence[str], made: Mapping[str, Artifact], store: Pinned, expected: Expected, seen: Ends
) -> dict[str, Artifact]:
    """Look at the data files of all that is to run before any of it is rehearsed, for which libraries are loaded.

    Returns: what is there already, by the stage.
    Raises: InputError for all that is missing, does not fit, or holds a row that cannot be used.
    """
    made = dict(made)
    found: dict[str, Artifact] = {}
    wrong: dict[str, InputError] = {}
    for name in names:
        entry, config = recipe.stages[name], bound(recipe, name, made)
        stage = stage_of(entry.kind)
        try:
            if _waits(entry, made):
                settings_of(stage, config, parent_kind(recipe, name))  # what these name is there
            else:
                question = as_run(prepare(stage, config, expected))
                if done := store.asked(question.key):
                    made[name] = found[name] = store.made[f"{recipe.name}/{name}"] = done
                    expected.know(question.base)
                    continue
            # a function asks more of rows than their shape, which is right to ask once its inputs are known to fit
            readers = {key: read for key, read in stage.reads(config).items() if not isfunction(read)}
            look(config, readers, {k: find_data(store, k, f).path for k, f in _files(entry).items()}, seen)
            tracker_names.check(getattr(config, "report_to", ()))
        except InputError as error:
            wrong[name] = error
    if wrong:
        raise refusal(recipe, wrong)
    return found


def _waits(entry: recipes.Entry, made: Mapping[str, Artifact]) -> bool:
    """Whether some of its inputs are still to be made."""
    return any(target not in made for targets in entry.inputs.values() for target in targets)


def refusal(recipe: Recipe, wrong: Mapping[str, InputError]) -> InputError:
    """All that is wrong with stages, in one go; what is said of a run is said of the first of its stage alone. It says
    how the recipe has files made that are not there."""
    told: dict[str, str] = {}
    given: dict[str, str] = {}
    for name, error in wrong.items():
        stage, files = recipe.stages[name].stage, _files(recipe.stages[name])
        said = _placed(recipe, name, str(error))
        of_a_run = said.startswith(f"{recipe.name}/{name}:")
        told.setdefault(stage if of_a_run else said, said + _stage_meant(recipe, name, files, said))
        given |= {f"{name}.{key}": file for key, file in files.items()}
    text = "\n".join(told.values())
    return InputError(text + _how_made(recipe, given, text))


def _placed(recipe: Recipe, name: str, said: str) -> str:
    """What is said of a stage, with the line of a setting that it is about, else with the stage's name."""
    title, entry = f"{recipe.name}/{name}", recipe.stages[name]
    lines: list[str] = []
    for line in said.splitlines():
        about = ABOUT.match(line)
        path = tuple(about["setting"].split(".")) if about else ()
        row_of = next((key for key, file in _files(entry).items() if _is_row(line, file)), None)
        if row_of and not lines:  # which comes first, as the file may lie in a folder called as a setting is
            lines.append(f"{recipe.setting(entry.stage, (root(row_of),))}: {line}")
        elif about and not row_of and path[0] in type(entry.config).model_fields:
            lines.append(f"{recipe.setting(entry.stage, path)}{line[about.end('setting') :]}")
        else:
            lines.append(line if lines or line.startswith(f"{title}:") else f"{title}: {line}")
    return "\n".join(lines)


def _is_row(line: str, file: str) -> bool:
    """Whether a line is about a row of a file, as records say where they stand."""
    return re.match(rf"{re.escape(str(Path(file)))}(:\d| row \d)", line) is not None


def _stage_meant(recipe: Recipe, name: str, given: Mapping[str, str], error: str) -> str:
    """What earlier stages have to do with an `error` that a name or a file is not there."""
    own = recipe.stages[name].stage
    earlier = [entry.stage for entry in takewhile(lambda entry: entry.stage != own, recipe.stages.values())]
    if lost := ASKED_FOR.search(error):
        if near := nearest(lost["name"], earlier):
            return f" Or did you mean {near}, an earlier stage?"
        known = f"the earlier ones are {', '.join(dict.fromkeys(earlier))}" if earlier else "there are no earlier ones"
        return f" Nor is it a stage before this one; {known}."
    gone = [Path(value).name for value in map(str, given.values()) if f"no file {value}" in error]
    near = next((stage for stage in (nearest(file, earlier) for file in gone) if stage), None)
    asked = " Or" if "Did you mean" in error else " Did you mean"
    return f"{asked} {near}, an earlier stage?" if near else ""


def _ahead(
    recipe: Recipe, name: str, made: Mapping[str, Artifact], store: Pinned, expected: Expected, seen: Ends
) -> Step:
    """What running one stage would do that is not done: it is rehearsed, and `expected` gets what it is to make.

    Raises: InputError.
    """
    entry, title = recipe.stages[name], f"{recipe.name}/{name}"
    stage = stage_of(entry.kind)
    waiting = _waits(entry, made)
    config = bound(recipe, name, made)
    try:
        question = as_run(prepare(stage, config, expected))
        notes = config.check_parents(question.parents)
        reason = _why_waiting(recipe, name, question, made, store) if waiting else question.why
        looked = look(config, stage.reads(config), question.data, seen)
        rehearsed = rehearse(question, looked, expected.scratch / name)
    except InputError as error:
        raise refusal(recipe, {name: error}) from error
    parent = question.parents["parent"].kind if "parent" in question.parents else None
    makes, *_ = stage.kinds(config, parent)
    expected.promise(title, makes, rehearsed)
    said = [] if waiting else [f"{title}: {note}" for note in notes]  # of what is not there yet nothing is known
    return Step(name, title, config, None, reason, [*said, *rehearsed.lines], looked)


def memory_plans(
    recipe: Recipe, steps: Sequence[Step], store: Pinned, asked: memory.Inquiry
) -> dict[str, memory.MemoryPlan | str]:
    """The memory of every stage that is to run, or why there is no plan for it; what it builds on may be still to be
    made."""
    plans: dict[str, memory.MemoryPlan | str] = {}
    made: dict[str, memory.Known] = {}
    measured = memory.rows.Measured()
    for step in steps:
        stage = stage_of(recipe.stages[step.name].kind)
        if step.done or stage.footprint is None:
            continue
        try:
            setup = memory_setup(stage, step.config, store, made, asked.device, step.looked, measured)
            made[step.title] = memory.outcome(setup)
            plans[step.title] = memory.plan(setup)
        except memory.Unknown as error:
            plans[step.title] = str(error)
        except InputError:  # a stage before it has no plan
            plans[step.title] = "what it builds on is not made yet, and could not be planned"
    return plans


def _files(entry: recipes.Entry) -> dict[str, str]:
    """The data files of a stage that are given, and not made by another stage, by the setting."""
    files = named_files(entry.config).items()
    return {key: file for key, file in files if file not in entry.inputs.get(root(key), ())}


def _how_made(recipe: Recipe, given: Mapping[str, str], error: str) -> str:
    """What the comment at the top of a recipe says, where `error` is that a data file is not there: its first
    paragraph, and those that name the file."""
    named = [Path(value) for value in map(str, given.values()) if value in error]
    files = [path.name for path in named if not path.exists()]
    if not files:
        return ""
    lines = takewhile(lambda line: line.startswith("#"), recipe.path.read_text(encoding="utf-8").splitlines())
    blocks = [" ".join(block.split()) for block in "\n".join(line[1:].strip() for line in lines).split("\n\n")]
    first = blocks[: 1 if blocks[0].endswith((".", ":")) else 2]  # a sentence may go on with a command
    said = [block for block in blocks if block and (block in first or any(name in block for name in files))]
    return f"\n{recipe.path} says: {' '.join(said)}" if said else ""


def _why_waiting(recipe: Recipe, name: str, asked: Question, made: Mapping[str, Artifact], store: Pinned) -> str:
    """Why a stage is to run whose inputs are made anew before it: those inputs, and its own settings that changed."""
    title = f"{recipe.name}/{name}"
    if unknown := why.nothing_known(title, store):
        return unknown
    entry = recipe.stages[name]
    titles = [f"{recipe.name}/{other}" for other in recipe.stages]
    anew = []
    for role, targets in entry.inputs.items():
        makers: dict[str, list[str]] = {}
        for target in targets:
            if target not in made:
                makers.setdefault(recipe.stages[target].stage, []).append(f"{recipe.name}/{target}")
        anew += [f"its {role} is made anew by {told}" for runs in makers.values() for told in in_few(runs, titles)]
    data = {key: find_data(store, key, file).digest for key, file in _files(entry).items()}
    settings = settings_of(asked.stage, asked.config, parent_kind(recipe, name))
    settled = asked.stage.settled(asked.config, asked.parents)  # of what is to be made, whose names are known
    settings |= {key: value for key, value in settled.items() if key in settings}
    last = store.resolve(title).config
    if "adapter" in last:
        settings.setdefault("adapter", last["adapter"])  # of an adapter that is trained on, which is not known yet
    if "max_length" in settings and settings["max_length"] > last.get("max_length", settings["max_length"]):
        # which may be the context, and that of the base to come is not known yet
        settings["max_length"] = last["max_length"]
    known = {"settings": settings, "data": data}
    return "; ".join([*anew, *why.against_last(known, entry.inputs.keys(), title, store)])
