"""A stage rehearsed: all that its work does before it loads a base, on the first rows of its data. What a run would
refuse is refused.

Judges are loaded and not called; the renderer is the one of the run; rows in the middle of a long file are not read.
Texts of all rows that are read are looked through for special tokens, and some rows are rendered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from align.data import steps
from align.data.collect import Records
from align.data.examples import Example
from align.data.records import Conversation, Labelled, Preference, Prompt, R, Ranking, Stepwise, Text, characters
from align.data.split import LIMIT, openings
from align.ground.errors import InputError, NothingLeft
from align.ground.terminal import counted, overheard
from align.inputs.bases import UNBOUNDED
from align.inputs.fit import check_seen, root
from align.recipe import ModelStage
from align.stage import mixture
from align.stage.ahead.contents import refused
from align.stage.ahead.fresh import check_fresh_adapter
from align.stage.execute import check_surroundings
from align.stage.question import Question
from align.stage.reading import Looked, divided, load_judges, settle
from align.stage.workbench import Workbench

if TYPE_CHECKING:
    from align.rendering.render import Renderer

T = TypeVar("T")
FRONT = 20
"""Rows of each file that are rendered, beside the longest."""


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal found."""

    lines: list[str]
    """What is to be said of the stage's data."""
    bench: Workbench
    """What the work would go on with."""
    renderer: Renderer | None = None
    """Its work's, where that is known."""
    answered: Sequence[Prompt] = ()
    """Prompts that reinforcement learning will surely train on."""
    drawn_on: Sequence[Prompt] = ()
    """Those that it takes beside them at most, where groups are drawn anew or rollouts are left early."""


def rehearse(question: Question, looked: Looked, place: Path) -> Rehearsed:
    """Do what the stage's work does before it loads a base, on the rows looked at. `place` is a folder for files of its
    own.

    Raises: InputError for what the work would refuse.
    """
    bench = Workbench(question, place / "out")
    check_surroundings(question)
    check_fresh_adapter(bench)
    lines = heard(lambda: settle(lambda records: bench.question.stage.ready(bench, records), bench, looked))[1]
    settle(lambda records: load_judges(bench, records), bench, looked)
    lines += [f"{bench.title}: {name}: {records.looked_at}" for name, records in looked.items()]
    given = {root(name) for name in bench.question.data}
    to_come = [name for name in bench.question.stage.reads(bench.config) if name in given and name not in looked]
    lines += [f"{bench.title}: {name}: still to be made, so how many rows it has is not known" for name in to_come]
    if "data" in to_come and getattr(bench.config, "max_steps", None) is not None:
        lines.append(f"{bench.title}: {bench.config.max_steps:,} optimizer steps of {bench.config.batch_size} records")
    of_model = isinstance(bench.config, ModelStage)
    if bench.question.base is None and not (of_model and "data" in looked):
        return Rehearsed(lines, bench)
    train, held = divided(bench, looked)
    renderer, said = heard(lambda: bench.question.stage.renderer(bench, train))
    lines += said
    for name, records in looked.items():
        if name != "hold_out" and records:
            rows = train if name == "data" else list(records)
            lines += look_at(bench, renderer, name, rows, records.whole)
            look_through(bench, renderer, rows, records)
    if "data" in looked and "eval_data" not in looked:
        whole = looked["data"].whole
        tried(bench, renderer, held, whole)  # measured by the run, so refused by it too
        if whole or not isinstance(getattr(bench.config, "hold_out", None), float):  # of which 1,000 are measured
            look_through(bench, renderer, held, looked["data"])
    if "data" in looked and hasattr(bench.config, "batch_size"):
        lines += [new_tokens(bench, renderer, train, looked["data"].whole)] if bench.new_tokens else []
        lines.append(f"{bench.title}: {amount(bench, renderer, train, len(held), looked)}")
    return Rehearsed(lines, bench, renderer, *answered(bench, renderer, train, looked))


def answered(
    bench: Workbench, renderer: Renderer, train: list[Any], looked: Looked
) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """The prompts that reinforcement learning will train on, and those that it may come to beside them, where all rows
    were read."""
    c = bench.config
    if not hasattr(c, "rollout_size") or not train or not looked["data"].whole:
        return (), ()
    left = (
        quietly(lambda: bench.question.stage.prompts(bench, renderer, train))[0]
        if "drop" in (c.truncate, c.bad_rows)
        else train
    )
    taken, times = rollouts(c, len(left))
    most = (taken if c.max_approx_kl is not None else times) * (1 + getattr(c, "resample", 0))
    each = c.rollout_size // getattr(c, "group_size", 1)
    order = [
        left[i] for i in dict.fromkeys(steps.in_seeded_passes(range(min(most * each, len(left))), len(left), c.seed))
    ]
    return order[: times * each], order[times * each :]


def rollouts(config: Any, prompts: int) -> tuple[int, int]:
    """(optimizer steps, rollouts) over so many prompts."""
    passes = config.ppo_epochs if hasattr(config, "ppo_epochs") else config.rollout_epochs
    return steps.reinforced(prompts, config, passes, getattr(config, "group_size", 1))[:2]


# ---- which records train ---------------------------------------------------------------------------------------------


def amount(bench: Workbench, renderer: Renderer, train: list[Any], held: int, looked: Looked) -> str:
    """Records to train on and optimizer steps; `about`, where rows were not read or may be left out."""
    config, records = bench.config, looked["data"]
    factor = 1.0 if records.whole else records.rows / len(records)
    some = train[: FRONT + 1]  # without the longest, which may be left out alone
    try:
        made = len(quietly(lambda: rendered(bench, renderer, some)))
    except NothingLeft:
        made = 0
    strict = (config.truncate, config.bad_rows) == ("error", "error") and not isinstance(records[0], Text)
    sure = records.whole and (len(some) == len(train) or (strict and made == len(some)))
    held_out, freed = held_apart(bench, held, looked)
    trained_on = (len(train) * factor + freed) * (made / len(some) if some else 1.0)
    count = mixture.at_most(bench, records) if records.parts and not records.whole else round(trained_on)
    about, about_held = "" if sure else "about ", "" if records.whole else "about "
    reinforced = hasattr(config, "rollout_size")
    lengths = (config.batch_size, config.epochs, config.max_steps)
    taken, times = rollouts(config, count) if reinforced else (steps.supervised(count, *lengths), 0)
    if sure:
        config.check_length(taken)
    if reinforced:
        return (
            f"{about}{counted(count, 'prompt')}, {about}{counted(times, 'rollout')} of "
            f"{counted(config.rollout_size, 'sample')}, {about}{counted(taken, 'optimizer step')}"
        )
    divided_so = f"{about}{count:,} to train on, {about_held}{held_out:,} held out"
    told = "" if config.max_steps is not None else about
    length = f"{told}{counted(taken, 'optimizer step')} of {counted(config.batch_size, 'record')}"
    return f"{divided_so}; {length}{steps.few(taken, config.max_steps)}"


def held_apart(bench: Workbench, held: int, looked: Looked) -> tuple[int, int]:
    """(records held out, records that are trained on beside the share that the rows looked at say): what is held out
    is so many prompts at most, of as many rows each as those looked at."""
    records = looked["data"]
    if "eval_data" in looked:
        return looked["eval_data"].rows, 0
    if records.whole:
        return held, 0
    share = round(held * records.rows / len(records))
    most = round(LIMIT * len(records) / len({*openings(records)}))
    # what is beyond the limit of a share in hold_out is trained on by none
    of_share = isinstance(getattr(bench.config, "hold_out", None), float)
    return min(share, most), 0 if of_share else max(share - most, 0)


# ---- what rendering does to them -------------------------------------------------------------------------------------


def sample(records: list[R]) -> list[R]:
    """The first records, and the longest one."""
    rest = records[FRONT:]
    return [*records[:FRONT], *([max(rest, key=characters)] if rest else [])]


def heard(work: Callable[[], T]) -> tuple[T, list[str]]:
    """(what some work gives, the lines that it says meanwhile)."""
    with overheard() as said:
        out = work()
    return out, said


def quietly(work: Callable[[], T]) -> T:
    """What is said of some rows is no news of the whole."""
    return heard(work)[0]


def wide(renderer: Renderer) -> Renderer:
    """The same renderer without a limit."""
    out = copy.copy(renderer)
    out.max_length = UNBOUNDED
    return out


def rendered(bench: Workbench, renderer: Renderer, records: Sequence[Any]) -> list[Example]:
    """Records as the stage's work has them rendered; of a prompt nothing counts. Raises: InputError, NothingLeft."""
    if not records:
        return []
    if isinstance(records[0], Prompt):
        ids = bench.question.stage.prompts(bench, renderer, list(records))[1]
        return [Example((row,), ([False] * len(row),)) for row in ids]
    render: dict[type, Callable[[Sequence[Any]], Sequence[Example]]] = {
        Conversation: renderer.conversations,
        **dict.fromkeys((Preference, Ranking), renderer.preferences),
        **dict.fromkeys((Labelled, Stepwise), renderer.labelled),
        Text: renderer.texts,
    }
    return list(render[type(records[0])](records))


def tried(bench: Workbench, renderer: Renderer, records: list[Any], whole: bool) -> list[Example] | str:
    """Some records rendered, or all that were read where nothing is left of some; in words, where nothing is left of
    these either and there are others.

    Raises: InputError for a row that the run would refuse.
    """
    try:
        return quietly(lambda: rendered(bench, renderer, sample(records)))
    except NothingLeft as error:
        try:
            return quietly(lambda: rendered(bench, renderer, records))
        except NothingLeft:
            if whole:
                raise
            return str(error)


def look_through(bench: Workbench, renderer: Renderer, records: Sequence[R], of: Records[R]) -> None:
    """Raises: InputError, as the run does, for a text of these records that it would refuse for what it holds; `of` are
    all that were looked at of their file."""
    if first := refused(bench, renderer, records, of):
        quietly(lambda: rendered(bench, renderer, [first]))


def look_at(bench: Workbench, renderer: Renderer, name: str, records: list[Any], whole: bool) -> list[str]:
    """The first row as the model reads it, and lengths. Raises: InputError for a row that the run would refuse."""
    from align.rendering.shown import LINES, block, example_as_text, titles_of

    some, title = sample(records), f"{bench.title}: {name}"
    if not some:
        return []
    made = tried(bench, renderer, records, whole)
    if isinstance(made, str):
        return [f"{title}: {made}"]
    if isinstance(some[0], Prompt):
        lengths = [len(ids) for ids in renderer.prompt_ids(some)]
        shown = [f"{text}«…»" for text in example_as_text(renderer.tokenizer, made[0])]
    else:
        lengths = [max(map(len, e.sequences)) for e in quietly(lambda: rendered(bench, wide(renderer), some))]
        shown = example_as_text(renderer.tokenizer, made[0])
    titles = [title or "first row" for title in titles_of(some[0])]
    lines = [
        line
        for what, text in zip(titles, shown, strict=True)
        for line in block(what, text, LINES // len(shown), indent="  ")
    ]
    return [f"{title}: {told_lengths(bench, renderer, lengths, some, len(records))}", *lines]


def told_lengths(bench: Workbench, renderer: Renderer, lengths: list[int], some: list[Any], read: int) -> str:
    """Median and longest of the records rendered, of those that were read, and what is done to those that are too
    long."""
    prompts, new = isinstance(some[0], Prompt), getattr(bench.config, "max_new_tokens", 0)
    limit = renderer.max_length if not prompts or hasattr(bench.config, "rollout_size") else bench.context
    over = sum(n + (new if prompts else 0) > limit for n in lengths)
    done = {"cut": "are cut", "drop": "are left out"}.get(
        str(getattr(bench.config, "truncate", "error")), "are too long"
    )
    fate = "are cut into several" if isinstance(some[0], Text) else done
    room = f", {new:,} more to be sampled," if prompts else ""
    most = f" of at most {limit:,}" if limit < UNBOUNDED else ""
    which = counted(read, "row") if len(some) == read else f"the first {FRONT} rows and the longest one"
    return (
        f"lengths of {which}: median {median(lengths):,.0f} tokens, longest {max(lengths):,}{room}{most}; "
        f"{f'{over / len(lengths):.0%} {fate}' if over else 'none is longer'}"
    )


def new_tokens(bench: Workbench, renderer: Renderer, train: list[Any], whole: bool) -> str:
    """How often the records looked at hold each new token. Raises: InputError where none of all records does."""
    names = dict(zip(bench.new_tokens, bench.config.new_tokens, strict=True))
    try:
        found = check_seen(names, quietly(lambda: rendered(bench, renderer, sample(train))))
        return f"{bench.title}: new tokens in the rows rendered: {found}"
    except InputError:
        try:
            found = check_seen(names, quietly(lambda: rendered(bench, renderer, train)))
            return f"{bench.title}: new tokens in the rows read: {found}"
        except InputError as error:
            if whole:
                raise
            return f"{bench.title}: of the rows read: {error}"
