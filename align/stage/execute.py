"""What every stage does around its own work: find its inputs, name what is asked, skip what is done, commit what came
out.

A stage file has a `Config`, a `STAGE` that describes it, its work, and a `run(config, store)` that calls `execute`.
Everything here up to the work itself reads a few small files and imports no torch; a rehearsal of a stage that is to
run imports it for its tokenizer.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import judges, memory, models, training
from align.data.files.sources import read_template
from align.data.formats import Records
from align.ground import ranks
from align.ground.cost import host, peak_memory, reset_peak_memory
from align.ground.disk import explaining
from align.ground.errors import InputError
from align.ground.terminal import guarded, print_result, say
from align.inputs.fit import (
    adapter_of,
    base_of,
    check_architecture,
    check_fits,
    check_layers,
    check_template,
    find_data,
    input_artifact,
    label_of,
    look,
    origin,
)
from align.recipe import files_of, idle, parse_flags, resolved
from align.report.text import result_text
from align.stage.expected import Expected
from align.stage.job import Job, Stage
from align.stage.rehearsal import rehearse
from align.store import Artifact, Store, digest_json


def execute(stage: Stage, config: Any, store: Store) -> Artifact:
    """Run a stage, unless what is asked is already there.

    Raises: InputError before anything heavy; Stopped when interrupted; whatever the work raises. Nothing is committed
    then.
    """
    job = prepare(stage, config, store)
    alone, first = ranks.world() == 1, ranks.is_first()  # under torchrun the first alone looks, commits and names
    if alone and (done := find_done(job, "done before, skipped")):
        return done
    notes, asked = config.check_parents(job.parents), job.key
    if job.settings.get("precision") == "auto":  # asking for it and for what it turns out to be is one question
        job.settings = job.settings | {"precision": models.precision.settled_precision()}
        if alone and (done := find_done(job, "done before, skipped")):
            store.remember(asked, done)
            return done
    for note in notes:
        say(f"{job.title}: {note}")
    if names := getattr(config, "report_to", ()):
        training.trackers.check(names)
    if getattr(config, "activation_offload", False):
        training.offload.check_device(models.process.device())
    with store.run(job.key, job.inputs, lock=first) as run:
        done = (
            find_done(job, "done by another process meanwhile" if alone else "done before, skipped") if first else None
        )
        if not alone and (found := training.processes.from_first(done.digest if done else "")):
            done = store.load(found)
        if done:
            return done
        job.run = run
        if job.base is not None and not job.base.in_store and first:
            store.note_place(job.base.digest, job.base.path)
        start = time.monotonic()
        give_back_memory()
        reset_peak_memory()
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=run.path) as scratch:
            job.folder = Path(scratch) / "out"
            job.folder.mkdir()
            assert stage.work is not None
            with explaining(run.path), nullcontext() if alone else training.processes.meeting():
                outcome = stage.work(job)
            if not first:
                return store.load(training.processes.from_first())
            with store.writing():  # until it has its name, or `align gc` could come between
                artifact = store.put(
                    outcome.folder,
                    kind=outcome.kind,
                    stage=stage.name,
                    version=stage.version,
                    config={**job.settings, **job.held},
                    parents=job.parents,
                    base=job.base.manifest() if job.base else None,
                    text=outcome.text,
                    data=job.digests,
                    metrics={**outcome.metrics, **job.counted()},
                    check=outcome.check,
                    owned=True,
                )
                took = time.monotonic() - start
                seconds = took + outcome.cost.get("earlier_seconds", 0.0)
                run.finish(
                    artifact, {**outcome.cost, "seconds": seconds, "peak_memory_bytes": peak_memory(), "host": host()}
                )
                store.remember(asked, artifact)
                publish(job, artifact, f"{took:.1f} s")
        if not alone:
            training.processes.from_first(artifact.digest)
        return artifact


def give_back_memory() -> None:
    """Free what this process needs no more, such as the models of the stage before: adapted layers hang in circles,
    which count until they are collected."""
    if "torch" in sys.modules:
        gc.collect()
        models.process.trim_heap()


def find_done(job: Job, how: str) -> Artifact | None:
    """What is there already for what is asked, named; None where it is to be made."""
    with job.store.writing():  # found and named at once: a name that was removed may have left it to `align gc`
        done = job.store.asked(job.key)
        return done and publish(job, done, how)


def prepare(stage: Stage, config: Any, store: Store) -> Job:
    """Find and check every input of a stage, without torch.

    Raises: InputError for a missing file, an unknown or damaged artifact, one of the wrong kind, or inputs that do not
    fit together.
    """
    if config.name is not None:
        store.check_name(config.name)
    parents: dict[str, Artifact] = {}
    given: dict[str, str] = {}
    for role, allowed in stage.inputs.items():
        named: Any = getattr(config, role, None)
        several = isinstance(named, list | tuple)
        for name in named if several else [named]:
            if name is None:
                continue
            artifact = input_artifact(stage.name, role, name, allowed, store)
            key = f"{role}/{label_of(name, artifact)}" if several else role
            if key in parents:
                raise InputError(
                    f"{role}: {given[key]} and {name} would both be called {label_of(name, artifact)} in the results "
                    f"(the end of a ref, or the stage of a digest). Give one another name: `align tag {name} NAME`."
                )
            parents[key], given[key] = artifact, name
    base = base_of(stage.name, config, store, parents)
    check_architecture(stage.name, stage.encoder_decoders, base)
    first = origin(parents)
    check_template(stage.name, config, first)
    for role, artifact in parents.items():
        check_fits(role, artifact, base, first)
    kind = parents["parent"].kind if "parent" in parents else None
    if refused := idle(config, kind):
        raise InputError("\n".join(text for _, text in refused))
    check_layers(config, base)
    data, digests = {}, {}
    for name in files_of(config):
        value = getattr(config, name)
        if value is not None:
            data[name], digests[name] = find_data(store, name, value)
    settings = settings_of(stage, config, kind)
    if "max_length" in settings:  # what holds
        contexts = [base.context] if base else [config.architecture.context] if hasattr(config, "architecture") else []
        settings["max_length"] = min([settings["max_length"], *contexts])
    if (
        "adapter" not in settings
        and hasattr(config, "adapter")
        and config.parent_adapter == "continue"
        and kind == "adapter"
    ):
        settings["adapter"] = adapter_of(store, parents["parent"])
    return Job(stage, config, store, base, parents, data, digests, settings)


def settings_of(stage: Stage, config: Any, parent: str | None) -> dict[str, Any]:
    """The settings that a result depends on beside its inputs, those without effect left out (`parent`: the kind of
    artifact that the parent is); a template or judge stands for its file's content.

    Raises: InputError for a template or judge that is not there.
    """
    settings = {
        k: v for k, v in resolved(config, parent).items() if k not in {*stage.inputs, *files_of(config), "base"}
    }
    for name, value in settings.items():
        if name == "chat_template" and value not in (None, "plain"):
            if not Path(value).is_file():
                raise InputError(f"chat_template: {value} is neither `plain` nor a file.")
            settings[name] = digest_json(read_template(value))
        elif name == "judge":
            settings[name] = judges.digest(value)
        elif name == "judges":
            settings[name] = {measure: judges.digest(function) for measure, function in value.items()}
    return settings


def publish(job: Job, artifact: Artifact, how: str) -> Artifact:
    """Point the stage's name at its artifact and say so."""
    name = job.title
    if ranks.is_first():
        old = job.store.tag(name, artifact)
        moved = f" (the name pointed at {old[:12]} before)" if old and old != artifact.digest else ""
        say(f"{name}: {how} -> {artifact.short}{moved}")
    return artifact


@dataclass
class Outlook:
    """What running a stage would do, found out before it runs."""

    says: list[str]
    """Whether and why it is to run, and notes on its inputs."""
    looks: list[str]
    """What its data are and how they are read, a line each."""
    looked: dict[str, Records[Any]]
    """The rows that were looked at."""

    def __str__(self) -> str:
        return "\n".join([*self.says, *self.looks])


def plan(stage: Stage, config: Any, store: Store) -> Outlook:
    """What running this would do, found out without weights: "skip" with the artifact, or "run" and why, and a
    rehearsal of that.

    Raises: InputError as `prepare` and `rehearse` do.
    """
    with tempfile.TemporaryDirectory(prefix=".align-") as place:
        expected = Expected(store, Path(place))
        job = prepare(stage, config, expected)
        if done := store.asked(job.key):
            return Outlook(
                [f"{job.title}: skip, {done.short} is there"], [], look(config, stage.reads(config), job.data)
            )
        notes = [f"{job.title}: {note}" for note in config.check_parents(job.parents)]
        looked = look(config, stage.reads(config), job.data)
        looks = rehearse(job, looked, Path(place)).lines
        return Outlook([f"{job.title}: run, {job.why}", *notes], looks, looked)


def memory_plan(
    stage: Stage, config: Any, store: Store, asked: memory.Question, looked: Mapping[str, Records[Any]] | None = None
) -> dict[str, memory.MemoryPlan | str]:
    """The stage's memory, or why there is no plan for it, under its name; with rows as long as those that were `looked`
    at."""
    try:
        setup = memory.workload_of(stage.name, config, store, {}, asked.device, looked)
        return {config.name or stage.name: memory.plan(setup)}
    except memory.Unknown as error:
        return {config.name or stage.name: str(error)}


def main(stage: Stage, run: Callable[[Any, Store], Artifact], doc: str | None) -> None:
    """`python -m align.X`: flags are the recipe's keys. Progress on stderr; stdout is `NAME DIGEST` (`--json`:
    manifest), of a report below its table."""

    def body() -> None:
        parsed = parse_flags(stage.config, sys.argv[1:], prog=f"python -m align.{stage.name}", doc=doc or "")
        asked = memory.Question.asked(parsed.memory, parsed.device, parsed.dry_run)
        store = Store(parsed.config.store)
        if parsed.dry_run:
            planned = plan(stage, parsed.config, store)
            found = memory_plan(stage, parsed.config, store, asked, planned.looked)
            print(_json(memory.as_json(found, asked)) if parsed.json else f"{planned}\n\n{memory.report(found, asked)}")
            return
        artifact = run(parsed.config, store)
        if not ranks.is_first():
            return
        name = parsed.config.name or stage.name
        line = f"{name} {artifact.digest}"
        text = f"{result_text(store, artifact)}\n\n{line}" if artifact.kind == "report" else line
        print_result(
            _json({**artifact.manifest, "digest": artifact.digest}) if parsed.json else text,
            f"The artifact is made: {line}",
        )
        say(next_command(name, artifact))

    guarded(body)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True)


def next_command(name: str, artifact: Artifact) -> str:
    """What one would usually do next."""
    return {
        "model": f"next: python -m align.sft --parent {name} --data FILE, or align chat {name}",
        "adapter": f"next: python -m align.dpo --parent {name} --data pairs.jsonl, or align chat {name}, "
        f"or python -m align.merge {name} --out DIR",
        "reward": f"next: python -m align.ppo --parent SFT --reward {name} --data prompts.jsonl, or python -m "
        f"align.merge {name} --out DIR",
        "classifier": f"next: align checkout {name} DIR, or align show {name} for the code that loads it",
        "data": f"next: python -m align.reward --parent SFT --data {name}",
        "report": f"next: align show {name}",
    }[artifact.kind]
