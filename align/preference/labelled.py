"""A run on answers that are called good or bad: records to examples, training against the parent, and what is
measured."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from align import measures, memory, preference
from align.data.examples import Example
from align.data.judged import read_labelled
from align.data.records import Labelled
from align.ground.terminal import say
from align.guard import supervised
from align.preference.setup import against_reference
from align.stage import learning, on_base, outcomes, reading
from align.stage.describe import C, Outcome, Stage, all_with
from align.stage.workbench import Workbench

if TYPE_CHECKING:
    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch
    from align.training.whole_step import Remembering

Fill = Callable[["Roles", list[Example]], list[Example]]
"""Puts into the answers of a step what they are told of each other."""

SHOWN = ("rewards/chosen", "rewards/rejected")
"""What the line of progress shows beside the loss."""


def train_on_labelled(
    bench: Workbench,
    loss: Callable[[Roles, Batch], Loss],
    *,
    prepare: Fill | None = None,
    measured: Fill | None = None,
    carried: Remembering | None = None,
) -> Outcome:
    """The work of stages that learn from single answers: an `adapter` artifact. `loss` has the term of the stage's
    name. `prepare` fills the answers of a step just before it is taken, `measured` those that are held out, and
    `carried` is what is remembered of steps."""
    config, budget = bench.config, bench.config.tokens_per_microbatch

    def measure(roles: Roles, examples: Sequence[Example]) -> dict[str, float]:
        rewards = preference.measure.implicit_rewards(roles, examples, budget, lambda gained, _: config.beta * gained)
        good = [bool(example.columns["good"][0][-1]) for example in examples]
        filled = measured(roles, list(examples)) if measured else examples
        found = preference.policy.mean_loss(roles, filled, budget, loss, bench.question.stage.name)
        return {"loss": found, **apart(rewards, good)}

    renderer = bench.load_renderer()
    records, held_out_records = reading.split(bench)
    examples, held_out = told(renderer.labelled(records)), told(renderer.labelled(held_out_records))
    say(f"{bench.title}: {renderer.counts}; {len(examples):,} answers to train on, {len(held_out):,} held out")
    say(f"{bench.title}: {balance(records, config.desirable_weight, config.undesirable_weight)}")
    roles = bench.load_base()
    on_base.add_reference(bench, roles)
    on_base.add_policy(bench, roles, examples)
    roles.train_only("policy")
    examples, held_out = against_reference(bench, roles, examples, held_out)
    guard = supervised.Guard(config, bench.title, roles, held_out, lambda some: measure(roles, some))
    history, cost = learning.fit(
        bench,
        roles,
        loss,
        examples,
        guard,
        show=SHOWN,
        prepare=prepare and (lambda some, step: prepare(roles, some)),
        carried=carried,
    )
    last = {k: v for k, v in history[-1].items() if k in ("loss", "kl", "shift") or k.startswith("rewards/")}
    found = {f"eval/{name}": value for name, value in measure(roles, held_out).items()} if held_out else {}
    return outcomes.adapter_artifact(bench, roles, renderer, {**last, **guard.metrics(), **found}, history, cost)


def told(examples: Sequence[Example]) -> Sequence[Example]:
    """The examples with column `good`: 1 for good answers, 0 for others."""
    good = array("f")
    for example in examples:
        good.extend([float(bool(example.label))] * (len(example.sequences[0]) - example.prefix))
    return measures.passes.with_column(examples, "good", good.tobytes())


def balance(records: list[Labelled], good_weight: float, bad_weight: float) -> str:
    """How many answers are good, and whether the weights make up for it, in words: KTO's eq. 8 wants weighted good to
    weighted bad answers between 1 and 4 / 3."""
    good = sum(record.label for record in records)
    bad = len(records) - good
    if not good or not bad:
        return f"all {len(records):,} answers are called {'good' if good else 'bad'}, so nothing is told apart"
    ratio = good_weight * good / (bad_weight * bad)
    wanted = "" if 1 <= ratio <= 4 / 3 else "; the paper wants 1 to 1.33: set desirable_weight or undesirable_weight"
    return f"{good:,} good and {bad:,} bad answers, weighted {ratio:.2f} to 1{wanted}"


def apart(rewards: list[float], good: list[bool]) -> dict[str, float]:
    """Mean rewards of good and of bad answers, where there are such."""
    sides = {"reward_good": True, "reward_bad": False}
    each = {name: [r for r, g in zip(rewards, good, strict=True) if g is side] for name, side in sides.items()}
    return {name: fmean(some) for name, some in each.items() if some}


def on_labelled(name: str, *, version: int, config: type[C], work: Callable[..., Outcome], does: str) -> Stage[C]:
    """A stage that learns from answers called good or bad."""
    return Stage(
        name,
        version=version,
        config=config,
        inputs={"parent": ("adapter", "model")},
        work=work,
        makes=("adapter",),
        reads=lambda config: all_with(read_labelled())(config),
        learns_from="examples",
        footprint=memory.Footprint(memory.kinds.kto, memory.rows.labelled),
        does=f"{does} on answers called good or bad",
        tags=(name,),
    )
