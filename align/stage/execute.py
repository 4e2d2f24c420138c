"""What every stage does around its own work: name what is asked, skip what is done, commit what came out.

A stage file has a `Config`, a `STAGE` that describes it, its work, and a `run(config, store)` that calls `execute`.
Everything up to the work itself reads a few small files and imports no torch.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from align import models, training
from align.ground import ranks
from align.ground.cost import host, peak_memory, reset_peak_memory
from align.ground.disk import explaining
from align.ground.errors import InputError, Stopped
from align.ground.progress import Task, Work
from align.ground.terminal import say
from align.inputs.fit import check_place
from align.recipe.optimizers import NOT_EVERYWHERE
from align.stage import layout, reading
from align.stage.describe import C, Outcome, Stage
from align.stage.question import Question, prepare
from align.stage.workbench import Workbench
from align.store import Artifact, Run, Store


def execute(stage: Stage[C], config: C, store: Store) -> Artifact:
    """Run a stage, unless what is asked is already there.

    Raises: InputError before anything heavy; Stopped when interrupted; whatever the work raises. Nothing is committed
    then.
    """
    with Work(config.name or stage.name) as told:
        return _execute(stage, config, store, told)


def _execute(stage: Stage[C], config: C, store: Store, told: Work) -> Artifact:
    """`execute`, told as work."""
    question = prepare(stage, config, store)
    alone, first = ranks.world() == 1, ranks.commits()  # under torchrun the first alone looks, commits and names
    if alone and (done := find_done(question, "done before, skipped")):
        return done
    training.telling.tracker_names.check(getattr(config, "report_to", ()))
    notes, asked = config.check_parents(question.parents), question.key
    bench = Workbench(question)
    if hasattr(config, "precision"):
        reading.look_ahead(bench)
    if question.settings.get("precision") == "auto":  # asking for it and for what it turns out to be is one question
        with Task("loading libraries"):
            question = layout.settled(question)
        if alone and (done := find_done(question, "done before, skipped")):
            store.remember(asked, done)
            return done
    for note in notes:
        say(f"{question.title}: {note}")
    check_surroundings(question)
    if (optimizer := getattr(config, "optimizer", "")) in NOT_EVERYWHERE:  # a rehearsal may be of another machine
        training.optimizers.check(optimizer, models.process.device())
    with store.run(question.key, question.inputs, lock=first) as run:
        meanwhile = "done by another process meanwhile" if alone else "done before, skipped"
        done = find_done(question, meanwhile) if first else None
        if not alone and (found := training.processes.from_first(done.digest if done else "")):
            done = store.load(found)
        if done:
            return done
        if first:
            _note_base(question)
        told.heard = run.news.work
        artifact = answer(replace(bench, question=question), run, asked)
        if alone and artifact:
            return artifact
        committed = training.processes.from_first(artifact.digest if artifact else "")
        return artifact or store.load(committed)


def check_surroundings(question: Question) -> None:
    """Store, trackers, devices and processes that the settings name. Raises: InputError."""
    config = question.config
    if question.stage.stores:
        check_place(question.store.path, f"the store {question.store.path}")
    layout.check_asked(question)
    if names := getattr(config, "report_to", ()):
        training.telling.trackers.check(names)
    if getattr(config, "activation_offload", False):
        training.offload.check_device(models.process.device())


def answer(bench: Workbench, run: Run, asked: str) -> Artifact | None:
    """Do the work and commit what comes out, under its own key and the one that was `asked`; None in every process but
    the first, which commits."""
    question = bench.question
    start = time.monotonic()
    with Task("loading libraries"):
        give_back_memory()
    reset_peak_memory()
    run.news.begin(question.title, question.stage.name, question.settings, question.made_from)
    question = layout.in_rows(question)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=run.path) as scratch:
        bench = Workbench(question, Path(scratch) / "out", run.path, programs=bench.programs)
        bench.folder.mkdir()
        with explaining(run.path), nullcontext() if ranks.world() == 1 else training.processes.meeting():
            outcome = work(bench, run)
            give_back_memory()  # before what came out is loaded again, beside what its making left
        if not ranks.commits():
            if bench.shards and outcome.check:  # whose forwards are those of all processes
                outcome.check(outcome.folder)
            return None
        with question.store.writing():  # until it has its name, or `align gc` could come between
            with Task("storing"):
                artifact = commit(bench, outcome)
            took = time.monotonic() - start
            seconds = took + outcome.cost.get("earlier_seconds", 0.0)
            cost = {**outcome.cost, "seconds": seconds, "peak_memory_bytes": peak_memory(), "host": host()}
            run.finish(artifact, cost)
            question.store.remember(asked, artifact)
            publish(question, artifact, f"{took:.1f} s")
    return artifact


def work(bench: Workbench, run: Run) -> Outcome:
    """The stage's own work; people who look on are told no more of one that is refused before it trains, and why one
    ended by an error."""
    try:
        return bench.question.stage.work(bench)
    except InputError:
        run.refuse()
        raise
    except Stopped:
        raise
    except Exception as error:
        run.news.failed(str(error) or type(error).__name__)
        raise


def commit(bench: Workbench, outcome: Outcome) -> Artifact:
    """Put what came out into the store. Raises: AlignError where it does not reload equal."""
    question = bench.question
    return question.store.put(
        outcome.folder,
        kind=outcome.kind,
        stage=question.stage.name,
        version=question.stage.version,
        config={**question.settings, **bench.held, **({"hub_data": question.hub_data} if question.hub_data else {})},
        parents=question.parents,
        base=question.base.manifest() if question.base else None,
        text=outcome.text,
        data=question.digests,
        metrics={**outcome.metrics, **bench.measured, **bench.counted()},
        check=outcome.check,
        owned=True,
    )


def give_back_memory() -> None:
    """Free what this process needs no more, such as the models of the stage before: adapted layers hang in circles,
    which count until they are collected."""
    if "torch" in sys.modules:
        gc.collect()
        models.process.trim_heap()


def find_done(question: Question, how: str) -> Artifact | None:
    """What is there already for what is asked, named; None where it is to be made."""
    with question.store.writing():  # found and named at once: a name that was removed may have left it to `align gc`
        done = question.store.asked(question.key)
        if done:
            _note_base(question)  # which a store does not know that was pulled
        return done and publish(question, done, how)


def _note_base(question: Question) -> None:
    """Keep where the base lies, for what is to build on this."""
    if question.base is not None and not question.base.in_store:
        question.store.note_place(question.base.digest, question.base.path)


def publish(question: Question, artifact: Artifact, how: str) -> Artifact:
    """Point the stage's name at its artifact and say so."""
    name = question.title
    if ranks.is_first():
        old = question.store.tag(name, artifact)
        question.store.called[artifact.digest] = name
        moved = f" (the name pointed at {old[:12]} before)" if old and old != artifact.digest else ""
        say(f"{name}: {how} -> {artifact.short}{moved}")
    return artifact
