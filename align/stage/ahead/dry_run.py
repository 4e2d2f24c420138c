"""A stage looked at before it runs: whether and why it would run, its rehearsal, and its memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import memory
from align.data.formats import Records
from align.ground.json import Json
from align.inputs.looked import look
from align.report.code import WHOLE
from align.stage.ahead.expected import Expected
from align.stage.ahead.rehearsal import rehearse
from align.stage.describe import C, Stage
from align.stage.layout import as_run
from align.stage.question import prepare
from align.store import Artifact, Store


@dataclass
class Outlook:
    """What running a stage would do, found out before it runs."""

    title: str
    done: Artifact | None
    """What it makes, where that is there."""
    why: str
    """Why it is to run; empty where it is done."""
    notes: list[str]
    """What is to be said of its inputs."""
    looks: list[str]
    """What its data are and how they are read, a line each."""
    looked: dict[str, Records[Any]]
    """The rows that were looked at."""

    @property
    def says(self) -> list[str]:
        """Whether and why it is to run, and the notes."""
        becomes = f"skip, {self.done.short} is there" if self.done else f"run, {self.why}"
        return [f"{self.title}: {said}" for said in (becomes, *self.notes)]

    def __str__(self) -> str:
        return "\n".join([*self.says, *self.looks])


def verdict(done: Artifact | None, why: str) -> Json:
    """What becomes of a stage, for programs."""
    return {"verdict": "skip", "digest": done.digest} if done else {"verdict": "run", "why": why}


def for_programs(
    verdicts: Mapping[str, Json], plans: Mapping[str, memory.MemoryPlan | str], asked: memory.Inquiry
) -> str:
    """`--dry-run --json`: what becomes of each stage by its name, and the memory of those that are to run."""
    sizes = memory.as_json(plans, asked)
    stages = {name: found | ({"memory": sizes[name]} if name in sizes else {}) for name, found in verdicts.items()}
    found = {"device": asked.device, "budget": asked.budget, "stages": stages}
    return json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False)


def plan(stage: Stage[C], config: C, store: Store) -> Outlook:
    """What running this would do, found out without weights, and a rehearsal of it where it is to run.

    Raises: InputError as `prepare` and `rehearse` do.
    """
    with tempfile.TemporaryDirectory(prefix=".align-") as place:
        expected = Expected(store, Path(place))
        question = as_run(prepare(stage, config, expected))
        if done := store.asked(question.key):
            return Outlook(question.title, done, "", [], [], look(config, stage.reads(config), question.data))
        notes = config.check_parents(question.parents)
        looked = look(config, stage.reads(config), question.data)
        looks = rehearse(question, looked, Path(place)).lines
        return Outlook(question.title, None, question.why, notes, looks, looked)


def memory_plan(
    stage: Stage[C],
    config: C,
    store: Store,
    asked: memory.Inquiry,
    looked: Mapping[str, Records[Any]] | None = None,
) -> dict[str, memory.MemoryPlan | str]:
    """The stage's memory, or why there is no plan for it, under its name; with rows as long as those that were `looked`
    at."""
    try:
        return {config.name or stage.name: memory.plan(memory_setup(stage, config, store, {}, asked.device, looked))}
    except memory.Unknown as error:
        return {config.name or stage.name: str(error)}


def memory_setup(
    stage: Stage[C],
    config: C,
    store: Store,
    made: Mapping[str, memory.Known],
    device: str,
    looked: Mapping[str, Records[Any]] | None,
    measured: memory.rows.Measured | None = None,
) -> memory.Workload:
    """What decides how much memory a stage takes; see `memory.workload_of`. Raises: memory.Unknown."""
    if stage.footprint is None:
        raise memory.Unknown(f"the memory of {stage.name} is not planned")
    whole = set(stage.kinds(config)) <= set(WHOLE)
    return memory.workload_of(stage.footprint, config, store, made, device, looked, whole, measured, stage.measures)
