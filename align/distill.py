"""Distillation: a student learns a teacher's distributions.  `python -m align.distill --base small --teacher my-dpo
--data sft.jsonl --name my-student`

Generalised knowledge distillation (Agarwal et al. 2023, arXiv 2306.13649, eq. 1): at each token of an answer the
student's distribution is brought to the teacher's, by KL(teacher || student) (`beta: 0`), KL(student || teacher)
(`beta: 1`) or what lies between, on the rows that are given and, in a share `lmbda` of the steps, on the student's own
answers to their prompts. Of the teacher the `top_k` likeliest tokens of each position are compared one by one, and all
others as one. What it gives on the rows is computed once and kept in the store, so that it need not lie in memory while
the student trains on them. The teacher may be an adapter on the student's base, or any model or adapter whose tokenizer
is the same. Left out: a temperature of the loss, losses on hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from align import distillation, losses, memory, models
from align.data.formats import read_conversations
from align.distillation.inputs import load_renderer, shares_base
from align.ground.terminal import say
from align.guard import limits, supervised
from align.recipe import Count, Ref, Temperature, TrainConfig, optimizers
from align.stage import learning, on_base, outcomes, reading
from align.stage.command import main
from align.stage.describe import Outcome, Stage, all_with
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store

if TYPE_CHECKING:
    from align.data.examples import Example
    from align.distillation.teacher import Teacher
    from align.losses.loss import Loss
    from align.models.roles import Roles
    from align.packed.pack import Batch


FULL_LEARNING_RATE = 2e-5


class Config(TrainConfig):
    """Distillation"""

    needs_one_of: ClassVar[Mapping[tuple[str, ...], str]] = {
        **TrainConfig.needs_one_of,
        ("teacher",): "teacher is missing; name the artifact whose distributions are learnt.",
    }

    teacher: Ref | None = None
    """The artifact that is learnt from: an adapter or a model, on the student's base or on another one with its
    tokenizer."""
    method: Literal["lora", "full"] = "lora"
    """Train an adapter on the student's frozen base, or all of its weights (a new model)."""
    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate: 2e-4 for an adapter, as in sft; with method full 2e-5, usual where all weights of a model
    train (TRL's default too). Random weights want more, about 1e-3."""
    beta: float = Field(default=0.5, ge=0.0, le=1.0)
    """0 is KL(teacher || student), which covers all that the teacher does; 1 KL(student || teacher), which keeps to
    what it does most; between them Jensen-Shannon's (0.5 in TRL)."""
    lmbda: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the steps that are taken on the student's own answers to the prompts of the rows (TRL: 0.5)."""
    top_k: Count = 64
    """The teacher's likeliest tokens that are compared one by one; the vocabulary's size, or more, takes all."""
    max_new_tokens: Count = 128
    """Longest answer of the student, in tokens."""
    temperature: Temperature = 1.0
    """Of the student's answers; losses are at 1."""
    optim_args: dict[str, optimizers.Value] = Field(default_factory=dict)
    """What GaLore takes beside its learning rate, by transformers' names: rank (128), update_proj_gap (200), scale
    (0.25) and proj_type (std), as in Zhao et al. 2024 (arXiv 2403.03507)."""
    save_dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision in which a full model is stored."""
    guard: limits.Limits = limits.Limits()

    @model_validator(mode="before")
    @classmethod
    def _gently_where_all_trains(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("method") == "full":
            return {"learning_rate": FULL_LEARNING_RATE, **given}
        return given

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if self.lmbda == 0:
            why = "lmbda is 0, so the student does not answer. Leave it out."
            found |= dict.fromkeys(("max_new_tokens", "temperature"), why)
        if self.method == "lora":
            found["save_dtype"] = "method is lora, which stores an adapter and no model. Leave it out."
        else:
            found |= self.without_adapter()
        return found


def loss(roles: Roles, batch: Batch, config: Config, teacher: Teacher) -> Loss:
    ids, wanted = teacher.of(batch)
    with roles.use("policy"):
        hidden = roles.hidden(batch, batch.rows)
        found = distillation.outcomes.divergences(roles.head, hidden, ids, wanted, config.beta, teacher.words)
    return losses.distillation.distilled(*found)


def run(config: Config, store: Store) -> Artifact:
    """Bring the student's distributions to the teacher's; an `adapter` artifact, or a `model` with `method: full`."""
    return execute(STAGE, config, store)


def train(bench: Workbench) -> Outcome:
    config, full = bench.config, bench.config.method == "full"
    renderer = load_renderer(bench)
    ready(bench, {})
    records, held_out_records = reading.split(bench)
    examples, held_out = renderer.conversations(records), renderer.conversations(held_out_records)
    say(f"{bench.title}: {renderer.counts}; {len(examples):,} to train on, {len(held_out):,} held out")
    if config.lmbda:
        distillation.on_policy.check(bench, renderer, examples)
    models.process.set_up_process(config.threads, config.seed)
    words, shared = distillation.inputs.common_words(bench), shares_base(bench)
    teacher = distillation.teacher.Teacher(
        lambda: roles if shared else distillation.teacher.loaded(bench), config.top_k, words
    )
    if shared:
        roles = bench.load_base()
        on_base.add_role(bench, roles, "teacher", distillation.teacher.folder_of(bench))
    if config.lmbda < 1:
        examples = teacher.keep(bench, examples)
    held_out = teacher.keep(bench, held_out) if held_out else []
    if not shared:
        if not config.lmbda:
            teacher.leave()
        roles = bench.load_base(in_fp32=full)
    add_student(bench, roles)

    def measure(some: Sequence[Example]) -> dict[str, float]:
        return distillation.teacher.measured(
            some, config.tokens_per_microbatch, roles, lambda r, b: loss(r, b, config, teacher)
        )

    at_start = {f"start/{name.removeprefix('eval/')}": value for name, value in measure(held_out).items()}
    guard = supervised.Guard(config, bench.title, roles, held_out, measure)
    prepare = distillation.on_policy.answered(bench, roles, renderer) if config.lmbda else None
    history, cost = learning.fit(
        bench, roles, lambda r, b: loss(r, b, config, teacher), examples, guard, ("kl",), prepare
    )
    metrics = {"loss": history[-1]["loss"], **at_start, **measure(held_out), **guard.metrics()}
    made = outcomes.model_artifact if full else outcomes.adapter_artifact
    return made(bench, roles, renderer, metrics, history, cost)


def add_student(bench: Workbench, roles: Roles) -> None:
    """What trains, as role "policy"."""
    if bench.config.method == "full":
        roles.assign("policy", [])
        roles.train_base()
    else:
        on_base.add_policy(bench, roles)
        roles.train_only("policy")


def ready(bench: Workbench, records: Mapping[str, object]) -> None:
    """What is to be trained can be, and the teacher is another. Raises: InputError."""
    outcomes.check_full(bench)
    distillation.inputs.check_differs(bench)


STAGE = Stage(
    "distill",
    version=1,
    config=Config,
    inputs={"parent": ("adapter", "model"), "teacher": ("adapter", "model")},
    own_base=("teacher",),
    work=train,
    makes=lambda config, parent: {"full": ("model",), "lora": ("adapter",)}[config.method],
    reads=all_with(read_conversations),
    learns_from="examples",
    footprint=memory.Footprint(memory.kinds.distill, memory.rows.whole),
    does="distillation of a teacher's distributions",
    feeds="dpo",
    tags=("gkd",),
    ready=ready,
    renderer=lambda bench, records: load_renderer(bench),
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
