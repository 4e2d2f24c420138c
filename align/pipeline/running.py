"""A recipe's stages in order, those that are done left out."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from align import memory, training
from align.data.shapes.advice import in_recipe
from align.ground import ranks
from align.ground.errors import AlignError, InputError, NotTrained, Stopped
from align.ground.json import Json
from align.ground.progress import Task, Work
from align.ground.terminal import say
from align.ground.wish import WISH
from align.inputs.bases import find_base
from align.memory.text import in_few
from align.pipeline.handover import bound, load, parent_kind, store_of
from align.pipeline.look_ahead import Step, look_ahead, memory_plans, refusal
from align.pipeline.pinned import Pinned
from align.recipe import Entry, Recipe
from align.stage import why
from align.stage.ahead.dry_run import for_programs, verdict
from align.stage.catalogue import module_of, stage_of
from align.stage.layout import as_run
from align.stage.question import prepare
from align.store import Artifact, Store


class Unfinished(AlignError):
    """A recipe with sweeps of which not all runs are done.

    Args:
        made: what was made of those that were asked for, by run.
        failed: what is said of a run that failed.
        left_out: why a run was not begun.
    """

    def __init__(
        self, text: str, made: Mapping[str, Artifact], failed: Mapping[str, str], left_out: Mapping[str, str]
    ) -> None:
        super().__init__(text)
        self.made, self.failed, self.left_out = made, failed, left_out


def run(
    recipe: str | Path | Recipe,
    store: Store | None = None,
    *,
    from_: str | None = None,
    until: str | None = None,
    dry_run: bool = False,
    as_json: bool = False,
    asked: memory.Inquiry | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Artifact]:
    """Run a recipe's stages that are not done; the artifact of each by the stage's name, where it is swept by that of
    each run, such as dpo.beta-0.1.

    Args:
        from_: begin here; what earlier stages made is taken as it is in the store, even where the recipe has changed
            since.
        until: end here.
        dry_run: print a line per stage, run or skip and why, then what each that is to run takes of memory; return what
            is there.
        as_json: print that as JSON.
        asked: the device and budget that memory is planned for; without it, this machine's and none.
        overrides: settings laid over the recipe, such as "stages.dpo.beta=0.2".
    Raises: InputError for whatever can be found wrong before the first stage runs; what a stage raises, in a recipe
        with sweeps Unfinished, which holds what was made.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load(recipe, overrides, store=store)
    earlier, names = _cut(recipe, from_, until)
    _check_laid_over(recipe, names)
    store = store or store_of(recipe)
    with Work(recipe.name), in_recipe(), nullcontext() if dry_run else store.hold() as held:
        pinned = Pinned(store, held)
        _check_taken(recipe, pinned)
        made = _given(recipe, names, earlier, pinned)
        for name, artifact in made.items():
            if reason := _since(recipe, name, made, pinned):
                say(f"{recipe.name}/{name}: {artifact.short} is taken as it is, though it would be made anew: {reason}")
        steps = look_ahead(recipe, names, made, pinned)
        if dry_run:
            tell = _tell_programs if as_json else _tell
            tell(recipe, made, steps, pinned, asked or memory.Inquiry.asked(None, None, dry_run))
            return made | {step.name: step.done for step in steps if step.done}
        trackers = {name for step in steps if not step.done for name in getattr(step.config, "report_to", ())}
        if trackers:
            training.telling.trackers.check(sorted(trackers))
        WISH.stop = False
        if ranks.world() > 1:  # here they wait for the slowest, in the name of no stage, which may be done
            with Task("loading libraries"):
                training.processes.from_first(None)
        _run_all(recipe, names, made, pinned)
        for alike in _one_artifact(recipe, made):
            say(f"{' and '.join(alike)} are one artifact: by what their names differ it is not made otherwise")
    return made


def _one_artifact(recipe: Recipe, made: Mapping[str, Artifact]) -> list[list[str]]:
    """The titles of runs of one stage that came to one artifact, as where a swept setting has no effect on some."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, artifact in made.items():
        found.setdefault((recipe.stages[name].stage, artifact.digest), []).append(f"{recipe.name}/{name}")
    return [titles for titles in found.values() if len(titles) > 1]


def _run_all(recipe: Recipe, names: Sequence[str], made: dict[str, Artifact], store: Pinned) -> None:
    """Run these one after the other, into `made`. Of a sweep, what does not build on a run whose training failed goes
    on. Raises: Stopped; what a stage raises, of a sweep Unfinished."""
    failed: dict[str, str] = {}
    left: dict[str, str] = {}
    code = 0
    for place, name in enumerate(names):
        if WISH.taken():
            raise Stopped(f"stopped before {recipe.name}/{name}; the same command goes on from there.")
        title = f"{recipe.name}/{name}"
        needed = [target for targets in recipe.stages[name].inputs.values() for target in targets]
        if lost := [target for target in needed if target in failed or target in left]:
            how = "failed" if lost[0] in failed else "was not begun"
            left[name] = f"it needs {recipe.name}/{lost[0]}, which {how}"
            continue
        try:
            made[name] = store.made[title] = _run_stage(recipe, name, made, store)
        except Stopped as error:
            raise Stopped("\n".join([*failed.values(), str(error)])) from error
        except AlignError as error:
            if not recipe.is_swept:
                raise
            failed[name] = str(error) if str(error).startswith(title) else f"{title}: {error}"
            code = error.exit_code  # and no more of it, whose frames hold the model
            if not isinstance(error, NotTrained) or ranks.world() > 1:  # of which one may fail alone
                left |= dict.fromkeys(names[place + 1 :], "not begun")
                break
            say(f"{title}: failed; what does not build on it goes on")
    if failed:
        done = {name: made[name] for name in names if name in made}
        unfinished = Unfinished(_unfinished(recipe, names, done, failed, left), done, failed, left)
        unfinished.exit_code = code
        raise unfinished


def _unfinished(
    recipe: Recipe, names: Sequence[str], done: Collection[str], failed: Mapping[str, str], left: Mapping[str, str]
) -> str:
    """What failed and why, what was not begun for it, and what to do."""
    titles = [f"{recipe.name}/{name}" for name in names]
    lines = list(failed.values())
    if left:
        lines.append(f"Not begun: {', '.join(in_few([f'{recipe.name}/{name}' for name in left], titles))}.")
    counts = [f"{len(done)} done", f"{len(failed)} failed", *([f"{len(left)} not begun"] if left else [])]
    swept = any(recipe.stages[name].stage != name for name in failed)
    remedy = "Take the value out of the sweep, or do what is said of it" if swept else "Do what is said of it"
    lines.append(f"Of {len(names)} runs {', '.join(counts)}. {remedy}; the same command then does the rest.")
    return "\n".join(lines)


def _cut(recipe: Recipe, from_: str | None, until: str | None) -> tuple[list[str], list[str]]:
    """The runs before those that are asked for, and those; a stage stands for all of its runs. Raises: InputError."""
    names = list(recipe.stages)
    stages = list(dict.fromkeys(entry.stage for entry in recipe.stages.values()))
    first, last = 0, len(names) - 1
    if from_:
        _known([*stages, *names], from_, "--from")
        first = next(i for i, name in enumerate(names) if from_ in (name, recipe.stages[name].stage))
    if until:
        _known([*stages, *names], until, "--until")
        last = max(i for i, name in enumerate(names) if until in (name, recipe.stages[name].stage))
    if last < first:
        raise InputError(f"--until {until} comes before --from {from_}; the order is {', '.join(stages)}.")
    return names[:first], names[first : last + 1]


def _check_laid_over(recipe: Recipe, names: Sequence[str]) -> None:
    """Raises: InputError for what --set changes only in stages that are not among those that are asked for."""
    asked = {recipe.stages[name].stage for name in names}
    for path, text in recipe.document.laid_over().items():
        takers = {*path[1:2]} if path[0] == "stages" else recipe.takers.of(path)
        if takers and not takers & asked:
            raise InputError(
                f"{text}: it has no effect on what is asked for ({', '.join(sorted(asked))}), only on "
                f"{', '.join(sorted(takers))}. Leave it out, or change --from or --until."
            )


def _check_taken(recipe: Recipe, store: Pinned) -> None:
    """Raises: InputError for what stands beside `stages` and has no effect, now that parents in the store are known."""

    def kind(run: Entry) -> str | None:
        parent = getattr(run.config, "parent", None)
        if parent is None or "parent" in run.inputs:
            return parent_kind(recipe, run.name)
        with suppress(InputError):  # one that is not there is told of with the rest that is wrong with its stage
            return store.resolve(parent).kind
        return None

    untaken = [(path, text) for path, text in recipe.takers.untaken(kind) if recipe.document.is_at_fault(path)]
    if untaken:
        raise InputError("\n".join(f"{recipe.document.where(path)}: {text}" for path, text in untaken))


def _known(names: Sequence[str], name: str, flag: str) -> None:
    """Raises: InputError for a name that is none of these."""
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"the recipe has {', '.join(dict.fromkeys(names))}."
        raise InputError(f"{flag} {name}: no such stage; {hint}")


def _given(recipe: Recipe, names: Sequence[str], earlier: Sequence[str], store: Pinned) -> dict[str, Artifact]:
    """What stages before `--from` made, as far as it is there. Raises: InputError naming the first that is needed and
    is not."""
    find = store.held.add if store.held else store.resolve
    refs = {name: f"{recipe.name}/{name}" for name in earlier}
    made = {name: find(ref) for name, ref in refs.items() if not why.nothing_known(ref, store)}
    needed = ((name, target) for name in names for targets in recipe.stages[name].inputs.values() for target in targets)
    for name, target in needed:
        if target in earlier and target not in made:
            if refs[target] in store.pointers("refs"):
                store.resolve(refs[target])  # says how it is damaged
            missing = f"there is no {refs[target]} in {store.path}"
            raise InputError(f"--from {names[0]}: {name} needs {target}, but {missing}. Run it first: --from {target}.")
    store.made |= {refs[name]: artifact for name, artifact in made.items()}
    bases = {base.model: base for name in earlier if (base := getattr(recipe.stages[name].config, "base", None))}
    for base in bases.values():
        with suppress(InputError):  # of one that is not there what needs it says more
            found = find_base(base, store)
            store.places |= {} if found.in_store else {found.digest: found.path}
    return made


def _since(recipe: Recipe, name: str, made: Mapping[str, Artifact], store: Pinned) -> str:
    """Why a stage before `--from` would be run by now; empty where it would not be, or that cannot be known."""
    try:
        question = as_run(prepare(stage_of(recipe.stages[name].kind), bound(recipe, name, made), store))
        return "" if store.asked(question.key) == made[name] else question.why
    except AlignError:
        return ""


def _tell(
    recipe: Recipe, made: Mapping[str, Artifact], steps: Sequence[Step], store: Pinned, asked: memory.Inquiry
) -> None:
    """Print what a run would do: a line a stage, what its data are, and its memory."""
    for name, artifact in made.items():
        print(f"{recipe.name}/{name}: taken as it is, {artifact.short}")
    if recipe.is_swept:
        there = sum(step.done is not None for step in steps)
        new = f"{len(steps) - there} new, {there} done"
        print(f"{recipe.name}: {len(steps)} runs of {len({recipe.stages[s.name].stage for s in steps})} stages, {new}")
    for step in steps:
        verdict = f"skip, {step.done.short} is there" if step.done else f"run, {step.why}"
        print(f"{step.title}: {verdict}")
    if looks := _looks(recipe, steps):
        print("\n" + "\n".join(looks))
    if planned := memory_plans(recipe, steps, store, asked):
        stages = {step.title: recipe.stages[step.name].stage for step in steps}
        print(f"\n{memory.report(planned, asked, stages)}")


def _tell_programs(
    recipe: Recipe, made: Mapping[str, Artifact], steps: Sequence[Step], store: Pinned, asked: memory.Inquiry
) -> None:
    """Print the same as JSON."""
    taken: dict[str, Json] = {
        f"{recipe.name}/{name}": {"verdict": "taken", "digest": artifact.digest} for name, artifact in made.items()
    }
    verdicts = taken | {step.title: verdict(step.done, step.why) for step in steps}
    print(for_programs(verdicts, memory_plans(recipe, steps, store, asked), asked))


def _looks(recipe: Recipe, steps: Sequence[Step]) -> list[str]:
    """What the data of each step are; runs of one stage that read the same alike are told once."""
    alike: dict[tuple[str, ...], list[Step]] = {}
    for step in filter(lambda step: step.looks, steps):
        said = (recipe.stages[step.name].stage, *(line.replace(step.title, "") for line in step.looks))
        alike.setdefault(said, []).append(step)
    lines: list[str] = []
    for runs in alike.values():
        first, *others = (step.title for step in runs)
        few = in_few([first, *others], [step.title for step in steps])
        lines += [*runs[0].looks, *(f"{told}: as {first}" for told in few if told != first)]
    return lines


def _run_stage(recipe: Recipe, name: str, made: Mapping[str, Artifact], store: Pinned) -> Artifact:
    """What one stage makes, or made before. Raises: what its `run` raises."""
    try:
        artifact: Artifact = module_of(recipe.stages[name].kind).run(bound(recipe, name, made), store)
        return artifact
    except Stopped as error:
        raise Stopped(f"{error} Stages that are done stay done.") from error
    except InputError as error:
        raise refusal(recipe, {name: error}) from error
