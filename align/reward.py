"""Reward model with LoRA on preference pairs.  `python -m align.reward --parent my-sft --data pairs.jsonl --name
my-reward`

Bradley-Terry loss (Ouyang et al. 2022, arXiv 2203.02155, eq. 1), with the margins of Touvron et al. 2023 (arXiv
2307.09288, eq. 2) where rows have one. The score is read at the completion's last token by a head of our own that
starts at zero (loss = ln 2). With `lists` a row of several ranked answers is one list (Plackett-Luce), in place of
every two of them as a pair (Ouyang et al., section 3.5). After training the head gets a bias that puts the mean score
of the parent's own answers at 0. Several seeds are an ensemble to those who train on them (docs/rl.md). Left out:
regression heads, process rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from align import losses, measures, memory, models, sampling
from align.data.examples import Example, in_pairs
from align.data.formats import read_preferences, read_rankings
from align.data.records import Preference, Prompt, Ranking
from align.ground.terminal import say
from align.guard import limits, supervised
from align.recipe import TrainConfig
from align.stage import learning, on_base, outcomes, reading
from align.stage.command import main
from align.stage.describe import Outcome, Stage, all_with
from align.stage.execute import execute
from align.stage.outcomes import cost_record, write_history
from align.stage.workbench import Workbench
from align.store import Artifact, Store

if TYPE_CHECKING:
    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch
    from align.rendering.render import Renderer


class Config(TrainConfig):
    """Settings of reward modelling."""

    answers = False

    guard: limits.PairLimits = limits.PairLimits()
    head_learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of the score head, which starts at zero and has further to go than the adapter."""
    lists: bool = False
    """Take ranked answers to a prompt as one list (Plackett-Luce), not every two of them as a pair; pairs are lists of
    two, and of answers that are worth the same the first is taken."""
    centre: NonNegativeFloat = 0.0
    """Weight of (r_chosen + r_rejected)^2, which keeps scores near 0 during training (arXiv 2312.09244, eq. 2; 0.01
    there)."""
    centre_samples: NonNegativeInt = 256
    """Answers that the parent samples at temperature 1 to set the bias from; 0 leaves the bias at 0."""
    centre_max_new_tokens: PositiveInt = 128
    """Longest such answer, in tokens."""

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if self.lists:
            found["centre"] = "lists is on, and centre is of pairs. Leave one of them out."
        if self.centre_samples == 0:
            found["centre_max_new_tokens"] = "centre_samples is 0, so no answers are sampled. Leave one of them out."
        return found


def loss(roles: Roles, batch: Batch, centre: float) -> Loss:
    return losses.reward.bradley_terry(roles.scores("policy", batch), batch.margins, centre)


def loss_of_lists(roles: Roles, batch: Batch) -> Loss:
    return losses.reward.plackett_luce(roles.scores("policy", batch), batch.columns["place"][batch.ends - 1])


def placed(examples: Sequence[Example]) -> list[Example]:
    """The examples with column `place`: 0 at every token of the best answer, 1 at those of the next, …"""
    out = []
    for e in examples:
        places = tuple([float(i)] * (len(s) - e.prefix) for i, s in enumerate(e.sequences))
        out.append(replace(e, columns={**e.columns, "place": places}))
    return out


def run(config: Config, store: Store) -> Artifact:
    """Train a reward model on preference pairs; a `reward` artifact: adapter and head."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config = bench.config
    renderer = bench.load_renderer()
    records, held_out_records = reading.split(bench)
    examples, held_out = renderer.preferences(records), renderer.preferences(held_out_records)
    pairs = examples
    if config.lists:
        pairs, held_out, examples = in_pairs(examples), in_pairs(held_out), placed(examples)
        say(f"{bench.title}: lists of {len(examples):,} prompts, {len(pairs):,} pairs in them")
    say(f"{bench.title}: {renderer.counts}; {len(pairs):,} pairs to train on, {len(held_out):,} held out")
    roles = bench.load_base()
    on_base.add_reference(bench, roles)
    on_base.add_policy(bench, roles, examples)
    roles.assign("policy", roles.adapters["policy"], roles.new_head())
    roles.train_only("policy", heads=["policy"])

    def found(some: Sequence[Example]) -> supervised.Figures:
        return supervised.pair_figures(measures.passes.scores(roles, "policy", some, config.tokens_per_microbatch))

    def step_loss(roles: Roles, batch: Batch) -> Loss:
        return loss_of_lists(roles, batch) if config.lists else loss(roles, batch, config.centre)

    guard = supervised.Guard(config, bench.title, roles, held_out, found, supervised.UNTRAINED)
    history, cost = learning.fit(bench, roles, step_loss, examples, guard, show=("accuracy",))
    if config.centre_samples:
        centre_on_parent(roles, renderer, records, config, bench.context)
    last = {name: history[-1][name] for name in ("loss", "accuracy")}
    metrics = {**last, **measure(roles, pairs, held_out, config.tokens_per_microbatch), **guard.metrics()}
    outcomes.save_role(bench, roles, "policy", bench.folder)
    renderer.save(bench.folder / "tokenizer")
    write_history(bench.folder, history)
    check = outcomes.reload_check(bench, roles, renderer, policy="")
    return Outcome(bench.folder, "reward", renderer.contract(), metrics, check, cost_record(cost))


def measure(roles: Roles, examples: Sequence[Example], held_out: Sequence[Example], budget: int) -> dict[str, object]:
    """Accuracy on held-out pairs with its interval, calibration, and what length alone would reach by the rule that
    `examples` teach."""
    longer = measures.statistics.prefers_longer(measures.statistics.completion_lengths(examples))
    scores = measures.passes.scores(roles, "policy", held_out, budget)
    found = measures.statistics.pair_statistics(
        scores, measures.statistics.completion_lengths(held_out), [e.head for e in held_out], longer
    )
    return {**found, "length_rule": "longer" if longer else "shorter"}


def centre_on_parent(
    roles: Roles, renderer: Renderer, records: list[Preference | Ranking], config: Config, context: int
) -> None:
    """Set the head's bias so that the parent's own answers to training prompts score 0 on average (detail 15 of arXiv
    2403.17031, where the demonstrations do)."""
    prompts = [Prompt(r.prompt, {}, r.where, r.tools) for r in records[: config.centre_samples]]
    rows = [p for p in renderer.prompt_ids(prompts) if len(p) + config.centre_max_new_tokens <= context]
    if not rows:
        say(
            f"no prompt leaves room for {config.centre_max_new_tokens} sampled tokens in a context of {context}; the "
            "bias stays 0"
        )
        return
    models.process.set_up_process(config.threads, config.seed)  # so that a resumed run draws the same
    sampler = sampling.rollout.sampler(roles, "reference", renderer)
    answers = sampler(rows, n=1, max_new_tokens=config.centre_max_new_tokens, temperature=1.0)
    examples = [
        sampling.rollout.as_example(p, [a.ids for a in several]) for p, several in zip(rows, answers, strict=True)
    ]
    roles.heads["policy"].bias -= float(
        measures.passes.scores(roles, "policy", examples, config.tokens_per_microbatch).mean()
    )


STAGE = Stage(
    "reward",
    version=5,
    config=Config,
    inputs={"parent": ("adapter", "model")},
    work=train,
    makes=("reward",),
    reads=lambda config: all_with(read_rankings if config.lists else read_preferences)(config),
    learns_from="examples",
    footprint=memory.Footprint(memory.kinds.reward, memory.rows.preference),
    does="reward modelling on preference pairs (Bradley-Terry)",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
