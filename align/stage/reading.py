"""Records of a stage: read, and divided into those that train and those that are held out; what is left out is never
silent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from align import judges
from align.data.collect import joined
from align.data.files.sources import check_unchanged, data_digest
from align.data.formats import Records
from align.data.records import R, Record
from align.data.split import at_most, leave_out, opening, openings, split_by_prompt
from align.ground.errors import InputError
from align.ground.progress import Task
from align.ground.terminal import overheard, say
from align.inputs.fit import root
from align.inputs.looked import look, read_file
from align.recipe import TrainConfig
from align.stage import mixture, trained_on
from align.stage.workbench import Workbench
from align.store import Artifact

Looked = Mapping[str, Records[Any]]
"""The first and last rows of a stage's data files, by the setting."""


def read(bench: Workbench, name: str) -> Records[Any]:
    """The records of an input; rows that were left out are never silent.

    Raises: InputError for a row that cannot be used; AlignError where the file is no longer the one that was
    hashed.
    """
    if parts := mixture.parts_of(bench, name):
        return joined([read(bench, part) for part in parts])
    path = bench.question.data[name]
    with Task(f"reading {path.name}"):
        records = read_all(bench, name)
        check_unchanged(path, bench.question.digests[name], data_digest(path))
    say(f"{bench.title}: {name}{f' ({mixture.file_told(bench, name)})' if '/' in name else ''}: {records}")
    bench.left_out |= records.dropped.figures(f"left_out/{name}")
    return records


def read_all(bench: Workbench, name: str) -> Records[Any]:
    """The records of an input. Raises: InputError for a row that cannot be used."""
    if parts := mixture.parts_of(bench, name):
        return joined([read_all(bench, part) for part in parts])
    return read_file(name, bench.question.data[name], bench.readers[root(name)], bench.config)


def split(bench: Workbench) -> tuple[list[Any], list[Any]]:
    """Records to train on and records held out: `eval_data` if given, else those of `hold_out`, or a share of the
    prompts by hash."""
    given = read(bench, "data")
    records, held_out = without_held_out(bench, given)
    own: set[str] = set()
    if "eval_data" in bench.question.data:
        records = mixture.mixed(bench, given, records)
        held_out, own = read(bench, "eval_data"), {*openings(records)}
    else:
        records, held_out = measured_apart(bench.config, records, held_out)
        records = mixture.mixed(bench, given, records)
    check_held_out(bench.config, held_out, bench.title)
    bench.held_out = held_out
    say_seen(bench, "held_out", held_out, "held-out prompts", bench.parents.values(), {bench.title: own})
    return records, held_out


def measured_apart(config: TrainConfig, records: list[R], left: list[R]) -> tuple[list[R], list[R]]:
    """Records to train on and records to measure, where no others are given for that: those that a share in `hold_out`
    has `left`, or a share of the prompts."""
    if isinstance(config.hold_out, float):
        return records, at_most(left)
    return split_by_prompt(records, config.eval_fraction)


def check_held_out(config: TrainConfig, held_out: Sequence[Record], title: str) -> None:
    """There is something to look at where that is asked for. Raises: InputError."""
    asked = [name for name in ("eval_steps", "eval_epochs") if getattr(config, name) is not None]
    asked += ["watch_prompts"] if config.watch_prompts and config.answers else []
    if asked and not held_out:
        raise InputError(
            f"{title}: {asked[0]} is set, but no record is held out. Give some as eval_data, hold more prompts out "
            f"(eval_fraction, hold_out), or leave {asked[0]} out."
        )


def say_seen(
    bench: Workbench,
    name: str,
    records: Sequence[Record],
    what: str,
    artifacts: Iterable[Artifact],
    own: Mapping[str, Collection[str]] | None = None,
) -> list[str]:
    """Which of the records that are measured `artifacts`, or what they come from, was trained on: counted, said,
    and given back."""
    found, lines = trained_on.seen(bench.store, artifacts, records, what, own or {})
    for line in lines:
        say(f"{bench.title}: {line}")
    if found:
        bench.left_out[f"trained_on/{name}"] = found
    return lines


def without_held_out(bench: Workbench, records: list[R]) -> tuple[list[R], list[R]]:
    """Records to train on, and those that `hold_out` keeps from training, counted. Raises: InputError where none is
    left."""
    held = bench.config.hold_out
    if held is None:
        return records, []
    kept, left = leave_out(records, held if isinstance(held, float) else {*openings(read(bench, "hold_out"))})
    nothing = (
        "" if left else ": no record has one of its prompts, compared character by character up to the first answer"
    )
    say(f"{bench.title}: hold_out: {len(left):,} of {len(records):,} records are left out{nothing}")
    bench.left_out["hold_out/records"] = len(left)
    check_kept(kept, len(records), bench.title)
    return kept, left


def check_kept(kept: Sequence[Record], records: int, title: str) -> None:
    """Some records are not held out. Raises: InputError."""
    if not kept:
        raise InputError(f"{title}: hold_out leaves nothing to train on of {records:,} records.")


# ---- looked at ahead of the work -------------------------------------------------------------------------------------


def look_ahead(bench: Workbench) -> None:
    """The first and last rows of a stage's data, what its work asks of them and of its settings, and its judges, which
    take far less time than the libraries that the work loads before it comes to them. Raises: InputError as the work
    does."""
    config, data = bench.config, bench.question.data
    try:
        looked: Looked = look(config, bench.question.stage.reads(config), data)
    except InputError:  # what is between may be right
        looked = {name: read_all(bench, name) for name in bench.readers if name in {root(given) for given in data}}
    with overheard():  # the work says it
        settle(lambda records: bench.question.stage.ready(bench, records), bench, looked)
        settle(lambda records: divided(bench, records), bench, looked)
    settle(lambda records: load_judges(bench, records), bench, looked)


def settle(check: Callable[[Looked], object], bench: Workbench, looked: Looked) -> None:
    """Check the rows that were looked at; where they fail, all there are, as the run does. Raises: as `check`."""
    try:
        check(looked)
    except InputError:
        if all(records.whole for records in looked.values()):
            raise
        check({name: read_all(bench, name) for name in looked})


def divided(bench: Workbench, looked: Looked) -> tuple[list[Any], list[Any]]:
    """The records looked at that are trained on or answered, and those that are held out to be measured, as
    `split` does."""
    records, config = list(looked.get("data", [])), bench.config
    if not hasattr(config, "hold_out"):
        return records[: getattr(config, "limit", None)], []
    share = config.hold_out if isinstance(config.hold_out, float) else None
    kept, left = leave_out(records, {opening(p) for p in looked.get("hold_out", [])} if share is None else share)
    if records and looked["data"].whole:
        check_kept(kept, len(records), bench.title)
    if getattr(config, "eval_data", None) or hasattr(config, "rollout_size"):  # the former may be still to be made
        return mixture.ahead(bench, looked.get("data"), kept), list(looked.get("eval_data", []))
    train, held_out = measured_apart(config, kept, left)
    if records and looked["data"].whole:
        check_held_out(config, held_out, bench.title)
    return mixture.ahead(bench, looked.get("data"), train), held_out


def load_judges(bench: Workbench, looked: Looked) -> None:
    """Load every judge and hold its signature against the columns of the prompts. Raises: InputError."""
    config, alone = bench.config, bool(getattr(bench.config, "judge", None))
    named = {"judge": config.judge} if alone else getattr(config, "judges", {})
    if named:
        held = bench.settings if alone else bench.settings["judges"]
        judges.load_all(named, list(looked.get("data", []))[: getattr(config, "limit", None)], held, bench.programs)
