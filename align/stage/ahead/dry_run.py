"""A stage looked at before it runs: whether and why it would run, its rehearsal, and its memory."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import memory
from align.data.formats import Records
from align.inputs.looked import look
from align.report.code import WHOLE
from align.stage.ahead.expected import Expected
from align.stage.ahead.rehearsal import rehearse
from align.stage.describe import C, Stage
from align.stage.layout import as_run
from align.stage.question import prepare
from align.store import Store


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


def plan(stage: Stage[C], config: C, store: Store) -> Outlook:
    """What running this would do, found out without weights: "skip" with the artifact, or "run" and why, and a
    rehearsal of that.

    Raises: InputError as `prepare` and `rehearse` do.
    """
    with tempfile.TemporaryDirectory(prefix=".align-") as place:
        expected = Expected(store, Path(place))
        question = as_run(prepare(stage, config, expected))
        if done := store.asked(question.key):
            return Outlook(
                [f"{question.title}: skip, {done.short} is there"], [], look(config, stage.reads(config), question.data)
            )
        notes = [f"{question.title}: {note}" for note in config.check_parents(question.parents)]
        looked = look(config, stage.reads(config), question.data)
        looks = rehearse(question, looked, Path(place)).lines
        return Outlook([f"{question.title}: run, {question.why}", *notes], looks, looked)


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
