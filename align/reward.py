"""Reward model with LoRA on preference pairs, or on steps.  `python -m align.reward --parent my-sft --data pairs.jsonl
--name my-reward`

Bradley-Terry loss (Ouyang et al. 2022, arXiv 2203.02155, eq. 1), with the margins of Touvron et al. 2023 (arXiv
2307.09288, eq. 2) where rows have one. The score is read at the completion's last token by a head of our own that
starts at zero (loss = ln 2). With `lists` a row of several ranked answers is one list (Plackett-Luce), in place of
every two of them as a pair (Ouyang et al., section 3.5). After training the head gets a bias that puts the mean score
of the parent's own answers at 0. Several seeds are an ensemble to those who train on them (docs/rl.md).

With `steps` rows are answers in steps that are right or wrong, and the model is a process reward model (Uesato et al.
2022, arXiv 2211.14275; Lightman et al. 2023, arXiv 2305.20050): its score at the end of a step is the log-odds that the
step is right, at the token in which the step's separator ends, and of the last one at the end of turn. That is where an
answer's score is read, which therefore is that of its last step. The loss is that of TRL's `PRMTrainer` (not in 1.16
any more), whose two logits differ by the score. Left out: regression heads; the least score of an answer's steps, or
their product, as its reward.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat

from align import losses, measures, memory, models, sampling
from align.data.examples import Example, in_pairs
from align.data.formats import RecordReader, read_preferences, read_rankings
from align.data.judged import read_steps
from align.data.records import Preference, Prompt, Ranking
from align.ground.errors import NothingLeft
from align.ground.terminal import counted, say
from align.guard import limits, supervised
from align.recipe import Count, FromZero, TrainConfig
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
    steps: bool = False
    """Learn from answers in steps, each called right or wrong: rows of prompt, completions and labels."""
    step_separator: str = Field(default="\n", min_length=1)
    """What joins the steps of an answer (TRL's default); one that ends in a space may share a token with the next
    step's first word, which the score has then seen."""
    train_on_last_step_only: bool = False
    """Learn from the last step of each answer alone: an outcome reward model; answers whose last step is cut off are
    left out. Held-out answers are measured at each."""
    centre: NonNegativeFloat = 0.0
    """Weight of (r_chosen + r_rejected)^2, which keeps scores near 0 during training (arXiv 2312.09244, eq. 2; 0.01
    there)."""
    centre_samples: FromZero = 256
    """Answers that the parent samples at temperature 1 to set the bias from; 0 leaves the bias at 0."""
    centre_max_new_tokens: Count = 128
    """Longest such answer, in tokens."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        both = given.get("lists") is True and given.get("steps") is True
        alone = "both lists and steps are set, and rows hold ranked answers or steps. Leave one of them out."
        return [*super().conflicts(given), *([alone] if both else [])]

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if not self.steps:
            off = "steps is off, so answers are taken whole. Set steps, or leave it out."
            found |= dict.fromkeys(("step_separator", "train_on_last_step_only"), off)
        else:
            odds = "steps is on, and its scores are log-odds that a step is right, which are not moved. Leave it out."
            found |= dict.fromkeys(("centre", "centre_samples", "centre_max_new_tokens"), odds)
            found["guard.overfitting"] = "steps is on, and that is seen in pairs. Leave it out."
            if "overfitting" in self.guard.stop:
                found["guard.stop"] = "it names overfitting, and steps is on, where that is not seen. Leave that out."
            return found
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


def loss_of_steps(roles: Roles, batch: Batch) -> Loss:
    return losses.reward.of_steps(roles.scores_at("policy", batch), batch.columns["right"][batch.rows])


def told(examples: Sequence[Example]) -> Sequence[Example]:
    """The examples with column `right`, where the end of a step is predicted: 1 where the step is right, else 0."""
    right = array("f")
    for example in examples:
        labels = iter(example.labels)
        counted = example.supervised[0][example.prefix + 1 :]
        right.extend([*(float(counts and next(labels)) for counts in counted), 0.0])
    return measures.passes.with_column(examples, "right", right.tobytes())


def last_steps(bench: Workbench, renderer: Renderer, examples: Sequence[Example]) -> list[Example]:
    """The last step of each answer alone; answers that end before it are left out, and counted. Raises: NothingLeft."""
    whole = [e for e in examples if e.supervised[0][-1] and e.sequences[0][-1] in renderer.stop_ids]
    if cut := len(examples) - len(whole):
        say(f"{bench.title}: {cut:,} answers are left out, as max_length cuts their last step off")
        bench.left_out["left_out/data/last_step_cut_off"] = cut
    if not whole:
        raise NothingLeft(f"{bench.title}: max_length cuts the last step of every answer off. Raise it.")
    return [last_alone(e) for e in whole]


def last_alone(example: Example) -> Example:
    """An answer of whose steps the last one counts."""
    (counted,) = example.supervised
    last = len(counted) - 1 - list(counted)[::-1].index(True)
    return replace(example, supervised=([i == last for i in range(len(counted))],), labels=example.labels[-1:])


def run(config: Config, store: Store) -> Artifact:
    """Train a reward model on preference pairs, or on steps; a `reward` artifact: adapter and head."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config = bench.config
    renderer = bench.load_renderer()
    if config.steps:
        return train_on_steps(bench, renderer)
    records, held_out_records = reading.split(bench)
    examples, held_out = renderer.preferences(records), renderer.preferences(held_out_records)
    pairs = examples
    if config.lists:
        pairs, held_out, examples = in_pairs(examples), in_pairs(held_out), placed(examples)
        say(f"{bench.title}: lists of {len(examples):,} prompts, {len(pairs):,} pairs in them")
    say(f"{bench.title}: {renderer.counts}; {len(pairs):,} pairs to train on, {len(held_out):,} held out")
    roles = set_up(bench, examples)

    def found(some: Sequence[Example]) -> supervised.Figures:
        return supervised.pair_figures(measures.passes.scores(roles, "policy", some, config.tokens_per_microbatch))

    def step_loss(roles: Roles, batch: Batch) -> Loss:
        return loss_of_lists(roles, batch) if config.lists else loss(roles, batch, config.centre)

    guard = supervised.Guard(config, bench.title, roles, held_out, found, supervised.UNTRAINED)
    history, cost = learning.fit(bench, roles, step_loss, examples, guard, show=("accuracy",))
    if config.centre_samples:
        say(f"{bench.title}: centring the scores on answers of the parent, which it samples now (centre_samples)")
        centre_on_parent(roles, renderer, records, config, bench.context)
    last = {name: history[-1][name] for name in ("loss", "accuracy")}
    metrics = {**last, **measure(roles, pairs, held_out, config.tokens_per_microbatch), **guard.metrics()}
    if doubt := undecided(metrics):
        say(f"{bench.title}: {doubt}")
    return outcomes.adapter_artifact(bench, roles, renderer, metrics, history, cost, "reward")


def undecided(found: Mapping[str, object]) -> str:
    """What to say of an accuracy that so few held-out pairs do not tell from guessing; "" for others."""
    interval, pairs = found.get("eval/accuracy_ci95"), found.get("eval/pairs")
    if not isinstance(interval, list | tuple) or not isinstance(pairs, int):
        return ""
    low, high = interval
    if not low <= 0.5 <= high:
        return ""
    return (
        f"accuracy {found['eval/accuracy']:.1%} on {counted(pairs, 'held-out pair')} (95 %: {low:.1%} to "
        f"{high:.1%}) is not told from guessing; more held-out pairs would tell (eval_fraction, eval_data)"
    )


def train_on_steps(bench: Workbench, renderer: Renderer) -> Outcome:
    config, budget = bench.config, bench.config.tokens_per_microbatch
    records, held_out_records = reading.split(bench)
    examples, held_out = renderer.labelled(records), renderer.labelled(held_out_records)
    if config.train_on_last_step_only:
        examples = last_steps(bench, renderer, examples)
    steps, right = (sum(f(e.labels) for e in examples) for f in (len, sum))
    say(
        f"{bench.title}: {renderer.counts}; {len(examples):,} answers to train on, {right:,} of their {steps:,} steps "
        f"right, {len(held_out):,} answers held out"
    )
    if right in (0, steps):
        say(f"{bench.title}: warning: all steps are called {'right' if right else 'wrong'}, so nothing is told apart")
    roles = set_up(bench, examples)

    def found(some: Sequence[Example]) -> dict[str, Any]:
        scores = measures.passes.step_scores(roles, "policy", some, budget)
        return measures.statistics.step_statistics(scores, [e.labels for e in some], [e.head for e in some])

    def figures(some: Sequence[Example]) -> supervised.Figures:
        now = found(some)
        return {name: now[f"eval/{name}"] for name in ("loss", "step_accuracy")}

    guard = supervised.Guard(config, bench.title, roles, held_out, figures, {"loss": math.log(2), "step_accuracy": 0.5})
    history, cost = learning.fit(bench, roles, loss_of_steps, told(examples), guard, show=("step_accuracy",))
    last = {name: history[-1][name] for name in ("loss", "step_accuracy")}
    metrics = {**last, **found(held_out), **guard.metrics()}
    return outcomes.adapter_artifact(bench, roles, renderer, metrics, history, cost, "reward")


def set_up(bench: Workbench, examples: Sequence[Example]) -> Roles:
    """The base with the parent as reference and the policy, whose head is of zeros."""
    roles = bench.load_base()
    on_base.add_reference(bench, roles)
    on_base.add_policy(bench, roles, examples)
    roles.assign("policy", roles.adapters["policy"], roles.new_head())
    roles.train_only("policy", heads=["policy"])
    return roles


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


def reader(config: Config) -> RecordReader[Any]:
    """What reads its rows."""
    if config.steps:
        return read_steps(config.step_separator)
    return read_rankings if config.lists else read_preferences


STAGE = Stage(
    "reward",
    version=5,
    config=Config,
    inputs={"parent": ("adapter", "model")},
    work=train,
    makes=("reward",),
    reads=lambda config: all_with(reader(config))(config),
    learns_from="examples",
    footprint=memory.Footprint(memory.kinds.reward, memory.rows.preference),
    does="reward modelling on preference pairs (Bradley-Terry), lists or steps",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
