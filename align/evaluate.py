"""Measure stages beside each other.

`python -m align.evaluate --compare my-sft --compare my-ppo --data heldout.jsonl --judges.gold judge.py:score`

On held-out prompts every model answers `n` times, at temperature 1 and by draws of its own: equal draws would make near
models give equal answers, and the better of the two win more often than it does. Python judges score the answers; by
the first judge each answer is held against every answer of the other model to the same prompt, ties counting half.
Intervals are over prompts (measures/intervals.py). KL is from the stage it is compared with, in nats per answer, at the
temperature of the samples, which are the stage's own. `pairs` measures a reward model, `texts` the held-out loss. Ends
with a table and one HTML page. A model may be asked in a judge's place, or beside judges (`judge_prompt`): of each
answer, or of each against every answer of the other model, in both orders. Left out: benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from align import evaluation, judges, measures, memory, models
from align.data.formats import RecordReader, Records, read_conversations, read_pairs, read_prompts
from align.data.records import Prompt
from align.evaluation.columns import OWN_MEASURES, answer_in, check_names, written_by_evaluate
from align.ground.errors import InputError
from align.ground.terminal import say
from align.judges import asked
from align.recipe import (
    Count,
    File,
    Judges,
    Processes,
    Ref,
    Refs,
    RowSettings,
    Runtime,
    Samples,
    Sampling,
    SpecialTokens,
    StageConfig,
    Temperature,
    Threads,
)
from align.sampling.answers import sample
from align.stage import on_base, reading, trained_on
from align.stage.command import main
from align.stage.describe import Outcome, Stage
from align.stage.execute import execute, give_back_memory
from align.stage.workbench import Workbench
from align.store import Artifact, Store


class Config(Sampling, asked.AskedModel, StageConfig, RowSettings, Processes):
    """Evaluation"""

    needs_one_of: ClassVar[Mapping[tuple[str, ...], str]] = {
        ("data", "pairs", "texts"): "there is nothing to measure: set data (prompts to answer), texts (for the loss), "
        "or pairs and reward."
    }

    strangers: ClassVar[Mapping[str, str]] = {
        "base": "the base of what is compared is measured anyway (include_base).",
        "tasks": "tasks of lm-eval are not here: give questions as --data, with --judges.NAME, or texts; a merged "
        "model is what lm-eval takes (align merge REF --out DIR).",
    }
    """What others give, and what to do here."""

    compare: Refs
    """Artifacts to measure, all on one base: names, digests, or stages of the recipe."""
    against: str | None = None
    """The one that win rates and KL are taken against: one of compare, as it is named there or in the results, or base;
    without it, the first of compare."""
    include_base: bool = True
    """Measure the bare base too."""
    data: File | None = None
    """Held-out prompts to answer; their other keys go to the judges as columns."""
    judges: Judges = Field(default_factory=dict)
    """Measure -> FILE.py:FUNCTION, called as TRL calls reward functions; the first decides who wins, and where there is
    none, what judge_prompt asks."""
    baselines: list[str] = Field(default_factory=list)
    """Columns of data that hold answers to judge beside the models', such as demonstrations."""
    special_tokens: SpecialTokens = "error"
    """What to do with rows that hold the tokenizer's special tokens as text: stop, read them as plain text, or keep
    them as they are."""
    n: Samples = 1
    """Answers of every model to each prompt."""
    temperature: Temperature = 1.0
    """Sampling temperature; at 0, where the likeliest tokens are taken, there is no KL."""
    limit: Count | None = None
    """Take only the first prompts."""
    trained_on: Literal["error", "drop"] = "error"
    """What to do with prompts that what is compared was trained on by reinforcement learning: stop, or leave them out,
    counted."""
    reward: Ref | None = None
    """A reward artifact to measure on pairs, and to score the answers with."""
    pairs: File | None = None
    """Held-out preference pairs to measure reward on."""
    texts: File | None = None
    """Held-out conversations for the loss of every model."""
    max_length: Count = 1024
    """Longest pair or conversation in tokens; longer ones are left out and counted."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the base computes in; auto is fp32 where one of the models was trained in it, as in chat and generate; else
    bf16 where the hardware computes it natively, else fp32."""
    tokens_per_microbatch: Annotated[Count, Runtime] = 4096
    """Tokens in one packed row. On a CPU, unless it is set, fewer where the base is wide: 524,288 / its hidden size, at
    least 512."""
    threads: Annotated[Threads | None, Runtime] = None
    """CPU threads; without it, as many as torch takes."""

    @property
    def truncate(self) -> str:
        return "drop"

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if self.data is None:
            why = "there are no prompts to answer. Set data, or leave it out."
            found |= dict.fromkeys(
                ("against", "n", "max_new_tokens", "temperature", "stop", "limit", "trained_on", "baselines"), why
            )
        elif not self.judges and not self.judge_prompt:
            found["baselines"] = "there is no judge to score them. Set judges or judge_prompt, or leave it out."
        if self.temperature == 0:
            found["n"] = "temperature is 0, so all answers to a prompt are the same. Leave one of them out."
        if self.reward is None:
            found["pairs"] = "there is no reward model to measure on them. Set reward, or leave it out."
        if self.texts is None and (self.pairs is None or self.reward is None):
            found["max_length"] = "there are no pairs or texts to read. Leave it out."
        return found

    @classmethod
    def conflicts(cls, given: Mapping[str, Any]) -> list[str]:
        found, functions = super().conflicts(given), given.get("judges") or {}
        if functions and given.get("data") is None:
            found.append("judges need prompts to answer: set data.")
        if given.get("judge_prompt") and given.get("data") is None:
            found.append("judge_prompt asks of answers to prompts: set data.")
        names = functions if isinstance(functions, Mapping) else ()  # what it is otherwise is told by its type
        taken = [name for name in names if written_by_evaluate(name, OWN_MEASURES)]
        return [
            *found,
            *(f"judges: {name} is what evaluate itself measures; call the judge something else." for name in taken),
        ]

    def check_parents(self, parents: Mapping[str, Artifact]) -> list[str]:
        check_names(self, list(compared(parents)))
        return []


def run(config: Config, store: Store) -> Artifact:
    """Measure `config.compare`; a `report` artifact with metrics, samples, a table and a page."""
    return execute(STAGE, config, store)


def compared(parents: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """What is compared, by its name in the results."""
    return {role.removeprefix("compare/"): a for role, a in parents.items() if role.startswith("compare/")}


def reference(config: Config, parents: Mapping[str, Artifact]) -> str:
    """Which of the models win rates and KL are taken against, by its name in the results. Raises: InputError for one
    that is not there."""
    labels = list(compared(parents))
    given = config.against or labels[0]
    known = dict(zip(config.compare, labels, strict=True)) | {
        name: name for name in (*labels, *(["base"] if config.include_base else []))
    }
    if given not in known:
        raise InputError(
            f"against: {given!r} is not among what is compared ({', '.join(dict.fromkeys(known.values()))})."
        )
    return known[given]


def work(bench: Workbench) -> Outcome:
    config = bench.config
    prompts, dropped = unseen(bench, reading.read(bench, "data")) if config.data else ([], [])
    prompts = prompts[: config.limit]
    functions = judges.load_all(config.judges, prompts, bench.settings["judges"], bench.programs)
    renderer = bench.load_renderer()
    prompts, prompt_ids = renderer.prompts(prompts, config.max_new_tokens, bench.context)
    written = baselines(config, prompts)
    bench.say_counts(renderer)
    if config.judge_prompt:
        room = (config.max_new_tokens, bench.context, written)
        measures.judgement.check_room(renderer, prompts, config.judge_prompt, *room)
    measured = [*compared(bench.parents).values()]
    rewards = [bench.parents["reward"]] if config.reward else []
    scorers = [*rewards, *([bench.parents["judge_model"]] if config.judge_model else [])]
    texts_read = reading.read(bench, "texts") if config.texts else []
    pairs_read = reading.read(bench, "pairs") if config.reward and config.pairs else []
    notes = [
        *dropped,
        *reading.say_seen(bench, "data", prompts, "prompts", [*measured, *scorers]),
        *reading.say_seen(bench, "texts", texts_read, "texts, by their prompts,", measured),
        *reading.say_seen(bench, "pairs", pairs_read, "pairs, by their prompts,", rewards),
    ]
    held_out, pairs = renderer.conversations(texts_read), renderer.preferences(pairs_read)
    roles = bench.load_base()
    metrics: dict[str, Any] = {}
    answers: dict[str, evaluation.answers.Answers] = {}
    beside = {**({"base": None} if config.include_base else {}), **compared(bench.parents)}
    against = reference(config, bench.parents)
    on_base.add_role(bench, roles, "against", folder_of(bench, beside[against]))
    for name, artifact in beside.items():
        on_base.add_role(bench, roles, "model", folder_of(bench, artifact))
        if prompts:
            models.process.set_up_process(config.threads, evaluation.comparison.own_seed(config.seed, name))
            answers[name] = sample(roles, "model", renderer, prompt_ids, config, config.n)
            metrics |= {
                f"{name}/{k}": v
                for k, v in evaluation.answers.measure_answers(
                    roles, answers[name], config.temperature, config.tokens_per_microbatch
                ).items()
            }
        if held_out:
            found = measures.statistics.held_out_loss(roles, "model", held_out, config.tokens_per_microbatch)
            metrics |= {f"{name}/{k.removeprefix('eval/')}": v for k, v in found.items()}
        roles.remove("model")
        give_back_memory()
    if config.reward:
        on_base.add_role(bench, roles, "reward", bench.store.folder(bench.parents["reward"]))
        rule = bench.parents["reward"].metrics.get("length_rule")
        metrics |= evaluation.answers.measure_reward(roles, pairs, answers, rule, config.tokens_per_microbatch)
    texts = {name: [[a["text"] for a in several] for several in rows] for name, rows in answers.items()}
    ids = {name: [[a["ids"] for a in several] for several in rows] for name, rows in answers.items()}
    for name, rows in written.items():
        texts[name] = rows
        ids[name] = [renderer.tokenizer(several, add_special_tokens=False)["input_ids"] for several in rows]
    scores, wins = evaluation.asked.judged(bench, roles, renderer, prompts, texts, ids, functions, against)
    metrics |= evaluation.comparison.compare(scores, against, wins)
    said = {name: judge.says for name, judge in functions.items()}
    evaluation.written.write_report(bench, metrics, prompts, texts, scores, list(beside), against, notes, said)
    return Outcome(bench.folder, "report", renderer.contract(), metrics)


def baselines(config: Config, prompts: list[Prompt]) -> dict[str, list[list[str]]]:
    """The answers that columns of the data hold, one to each prompt. Raises: InputError for a row without one."""
    return {name: [[answer_in(prompt, name)] for prompt in prompts] for name in config.baselines}


def ready(bench: Workbench, records: Mapping[str, Records[Any]]) -> None:
    """Prompts are left that nothing compared was trained on, and hold the answers that `baselines` name. Raises:
    InputError."""
    digest, prompts = bench.question.digests.get("data", ""), records.get("data", ())
    drop = bench.config.trained_on == "drop"
    for note in trained_on.not_known(bench.store, compared(bench.parents).values(), digest, prompts, drop=drop):
        say(f"{bench.title}: {note}")
    if "data" in records:
        baselines(bench.config, unseen(bench, records["data"])[0][: bench.config.limit])


def unseen(bench: Workbench, prompts: list[Prompt]) -> tuple[list[Prompt], list[str]]:
    """The prompts that nothing compared was trained on by reinforcement learning, and what is to be said of others;
    `align.stage.trained_on.leave_out` raises."""
    kept, notes = trained_on.leave_out(
        bench.store, compared(bench.parents).values(), prompts, bench.config.trained_on == "drop"
    )
    for note in notes:
        say(f"{bench.title}: {note}")
    if len(kept) < len(prompts):
        bench.left_out["trained_on/prompts"] = len(prompts) - len(kept)
    return kept, notes


def folder_of(bench: Workbench, artifact: Artifact | None) -> Path | None:
    return bench.store.folder(artifact) if artifact else None


def readers(config: Config) -> dict[str, RecordReader]:
    def read_data(*asked: Any, **more: Any) -> Records[Prompt]:
        records = read_prompts(*asked, **more)
        for prompt, name in product(list(records)[: config.limit], config.baselines):
            answer_in(prompt, name)
        return records

    return {"data": read_data, "pairs": read_pairs, "texts": read_conversations}


STAGE = Stage(
    "evaluate",
    version=8,
    config=Config,
    inputs={"compare": ("adapter",), "reward": ("reward",), "judge_model": ("adapter",)},
    work=work,
    makes=("report",),
    reads=readers,
    footprint=memory.Footprint(memory.kinds.evaluate, memory.rows.whole),
    encoder_decoders=True,
    ready=ready,
    settled=lambda config, parents: {"against": reference(config, parents)},  # the order of compare decides it, too
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
