"""Direct preference optimisation with LoRA.  `python -m align.dpo --parent my-sft --data pairs.jsonl --name my-dpo`

Loss: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7, over completion tokens only. The reference is the parent artifact,
frozen; its log-probabilities are computed once, before training. Left out: f-divergences, length-desensitised and
reference-free variants.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from align import losses, measures, memory, training
from align.data.examples import Example
from align.data.formats import read_pairs
from align.ground.terminal import say
from align.guard import limits, supervised
from align.recipe import TrainConfig
from align.stage import learning, on_base, outcomes, reading
from align.stage.command import main
from align.stage.describe import Outcome, Stage, all_with
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store

if TYPE_CHECKING:
    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch


class Config(TrainConfig):
    """Settings of direct preference optimisation."""

    loss: Literal["sigmoid", "hinge"] = "sigmoid"
    """Pairwise loss of the implicit rewards' margin, a function of align/losses/preference.py: DPO's own, or RSO's
    hinge, which leaves a pair alone once its margin is 1."""
    beta: PositiveFloat = 0.1
    """Inverse temperature of the implicit reward; larger stays closer to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of pairs assumed to be labelled the wrong way round (conservative DPO)."""
    sft_coef: NonNegativeFloat = 0.0
    """Weight of the chosen completions' mean next-token loss beside DPO's (RPO, arXiv 2404.19733, eq. 1)."""
    learning_rate: PositiveFloat = 5e-5
    """Peak learning rate; ten times the 5e-6 usual for full fine-tuning (Rafailov et al. use 1e-6, Zephyr 5e-7 to
    5e-6), as LoRA wants."""
    guard: limits.PolicyLimits = limits.PolicyLimits()


def loss(roles: Roles, batch: Batch, config: Config) -> Loss:
    logprobs = roles.logprobs("policy", batch)
    ref = batch.per_sequence(batch.columns["ref_logprobs"])
    sums, lengths = batch.per_sequence(logprobs), batch.per_sequence(batch.loss_mask.to(logprobs.dtype))
    pairwise = getattr(losses.preference, config.loss)
    parts = [
        losses.preference.dpo(sums, ref, config.beta, config.label_smoothing, pairwise),
        losses.preference.chosen_shift(sums, ref, lengths),
    ]
    if config.sft_coef:
        parts.append(losses.preference.chosen_nll(logprobs, batch, config.sft_coef))
    return losses.loss.combine(*parts)


def run(config: Config, store: Store) -> Artifact:
    """Train on preference pairs against the parent as reference; an `adapter` artifact."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config = bench.config
    renderer = bench.load_renderer()
    records, held_out_records = reading.split(bench)
    examples, held_out = renderer.preferences(records), renderer.preferences(held_out_records)
    say(f"{bench.title}: {renderer.counts}; {len(examples):,} pairs to train on, {len(held_out):,} held out")
    roles = bench.load_base()
    on_base.add_reference(bench, roles)
    on_base.add_policy(bench, roles)
    roles.train_only("policy")
    plan = learning.plan(bench, examples)
    needed, twice = plan.needed(), Counter(range(len(held_out))) + Counter(range(len(held_out)))
    examples = learning.with_trunk(
        bench, roles, examples, lambda: plan.looks() + Counter(needed)
    )  # the reference looks once
    for i, example in zip(needed, learning.with_reference(bench, roles, [examples[i] for i in needed]), strict=True):
        examples[i] = example
    held_out = learning.with_reference(bench, roles, learning.with_trunk(bench, roles, held_out, lambda: twice))
    training.start.assert_starts_at_reference(
        roles, [examples[i] for i in plan.chosen(0)], config.tokens_per_microbatch
    )

    def found(some: list[Example]) -> supervised.Figures:
        return supervised.pair_figures(implicit_rewards(roles, some, config))

    guard = supervised.Guard(config, bench.title, roles, held_out, found, supervised.UNTRAINED)
    show = ("rewards/accuracies", "rewards/margins")
    history, cost = learning.fit(bench, roles, lambda r, b: loss(r, b, config), examples, guard, show=show)
    last = {
        k: v for k, v in history[-1].items() if k == "loss" or k.startswith(("rewards/", "logps/"))
    } | guard.metrics()
    return outcomes.adapter_artifact(
        bench, roles, renderer, {**last, **measure(roles, examples, held_out, config)}, history, cost
    )


def implicit_rewards(roles: Roles, examples: list[Example], config: Config) -> list[float]:
    """beta * (log policy - log reference) of every sequence."""
    policy = measures.passes.sequence_logprobs(roles, "policy", examples, config.tokens_per_microbatch)
    return [
        config.beta * float(p.sum() - r.sum())
        for example, row in zip(examples, policy, strict=True)
        for p, r in zip(row, example.columns["ref_logprobs"], strict=True)
    ]


def measure(roles: Roles, examples: list[Example], held_out: list[Example], config: Config) -> dict[str, object]:
    """How often the implicit reward orders held-out pairs right, and how often a rule of length that `examples`
    teach."""
    longer = measures.statistics.prefers_longer(measures.statistics.completion_lengths(examples))
    found, lengths = implicit_rewards(roles, held_out, config), measures.statistics.completion_lengths(held_out)
    return measures.statistics.pair_statistics(found, lengths, [e.head for e in held_out], longer)


STAGE = Stage(
    "dpo",
    version=4,
    config=Config,
    inputs={"parent": ("adapter", "model")},
    work=train,
    makes=("adapter",),
    reads=all_with(read_pairs),
    learns_from="examples",
    footprint=memory.Footprint(memory.kinds.dpo, memory.rows.preference),
    does="direct preference optimisation on preference pairs",
    tags=("dpo",),
    encoder_decoders=True,
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
