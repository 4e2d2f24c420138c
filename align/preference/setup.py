"""A run on preference pairs: records to examples, what is computed once and kept, training, and what is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from align import measures, memory, preference, training
from align.data.examples import Example
from align.data.formats import read_pairs
from align.ground.terminal import say
from align.guard import supervised
from align.stage import learning, on_base, outcomes, reading
from align.stage.describe import C, Outcome, Stage, all_with
from align.stage.workbench import Workbench

if TYPE_CHECKING:
    from align.models.roles import Roles
    from align.preference.measure import ImplicitReward
    from align.training.checks.moving_reference import MovingReference
    from align.training.step_module import LossFunction
    from align.training.whole_step import Remembering

SHOWN = ("rewards/accuracies", "rewards/margins")
"""What the line of progress shows beside the loss."""


def train_on_pairs(
    bench: Workbench,
    loss: LossFunction,
    reward: ImplicitReward,
    prepare: Callable[[Roles, list[Example]], list[Example]] | None = None,
    reference: bool = True,
    carried: Remembering | None = None,
    own_loss: ImplicitReward | None = None,
) -> Outcome:
    """The work of stages that learn from pairs, against the parent as `reference` or without one: an `adapter`
    artifact. `prepare` fills the pairs of a step just before it is taken, and `carried` is what that
    remembers of steps. `own_loss` gives the losses (P) of held-out pairs where that of their order would mislead, as
    one that has a margin to reach."""
    budget, renderer = bench.config.tokens_per_microbatch, bench.load_renderer()
    records, held_out_records = reading.split(bench)
    examples, held_out = renderer.preferences(records), renderer.preferences(held_out_records)
    say(f"{bench.title}: {renderer.counts}; {len(examples):,} pairs to train on, {len(held_out):,} held out")
    roles = bench.load_base()
    if reference:
        on_base.add_reference(bench, roles)
    on_base.add_policy(bench, roles, examples)
    moving = on_base.moving_reference(bench, roles) if reference else None
    roles.train_only("policy")
    if reference:
        examples, held_out = against_reference(bench, roles, examples, held_out)

    def found(some: Sequence[Example]) -> supervised.Figures:
        gained, lengths = preference.measure.gained(roles, some, budget)
        figures = supervised.pair_figures(reward(gained, lengths).tolist())
        return figures if own_loss is None else {**figures, "loss": float(own_loss(gained, lengths).mean())}

    at_start = supervised.UNTRAINED if reference else None
    if at_start and own_loss:
        at_start = {**at_start, "loss": preference.measure.untrained(own_loss)}
    guard = supervised.Guard(bench.config, bench.title, roles, held_out, found, at_start)

    def filled(some: list[Example], step: int) -> list[Example]:
        now = some if moving is None else against_moved(roles, moving, some, step, budget)
        return prepare(roles, now) if prepare else now

    history, cost = learning.fit(
        bench,
        roles,
        loss,
        examples,
        guard,
        show=SHOWN,
        prepare=filled if moving or prepare else None,
        carried=together(reference=moving, loss=carried),
    )
    last = {k: v for k, v in history[-1].items() if k == "loss" or k.startswith(("rewards/", "logps/"))}
    rewards = preference.measure.implicit_rewards(roles, held_out, budget, reward)
    measured = preference.measure.pair_metrics(examples, held_out, rewards)
    if moving:
        moving.note(bench.folder)
        measured = {**measured, **moving.figures()}
    return outcomes.adapter_artifact(bench, roles, renderer, {**last, **guard.metrics(), **measured}, history, cost)


def together(**each: Remembering | None) -> Remembering | None:
    """What remembers all that these do, by their names; None where none of them is there."""
    there = {name: one for name, one in each.items() if one is not None}
    return training.whole_step.Several(there) if there else None


def against_moved(
    roles: Roles, moving: MovingReference, examples: list[Example], step: int, budget: int
) -> list[Example]:
    """The pairs of a step against the reference as it is by then: once it has moved, its log-probs are computed
    anew."""
    moving.after(step)
    if not moving.moves:
        return examples
    made = measures.passes.flat_logprobs(roles, "reference", examples, budget)
    return [*measures.passes.with_column(examples, "ref_logprobs", made.tobytes())]


def against_reference(
    bench: Workbench, roles: Roles, examples: Sequence[Example], held_out: Sequence[Example]
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Both with the reference's log-probs as column `ref_logprobs`, of `examples` those that the run looks at, and with
    what enters the first layer that trains, where that is kept. Raises: AlignError where the policy does not start at
    the reference."""
    plan = learning.plan(bench, examples)
    needed, twice = plan.needed(), Counter(range(len(held_out))) + Counter(range(len(held_out)))
    examples = learning.with_trunk(
        bench, roles, examples, lambda: plan.looks() + Counter(needed)
    )  # the reference looks once
    examples = learning.with_reference(bench, roles, examples, needed)
    held_out = learning.with_reference(bench, roles, learning.with_trunk(bench, roles, held_out, lambda: twice))
    training.checks.start.assert_starts_at_reference(
        roles, [examples[i] for i in plan.chosen(0)], bench.config.tokens_per_microbatch
    )
    return examples, held_out


def without_reference(name: str, *, version: int, config: type[C], work: Callable[..., Outcome], does: str) -> Stage[C]:
    """A stage that learns from pairs without a reference."""
    return Stage(
        name,
        version=version,
        config=config,
        inputs={"parent": ("adapter", "model")},
        work=work,
        makes=("adapter",),
        reads=all_with(read_pairs),
        learns_from="examples",
        footprint=memory.Footprint(memory.kinds.without_reference, memory.rows.preference),
        does=does,
        tags=(name,),
        encoder_decoders=True,
    )
