"""Measure stages beside each other.

`python -m align.evaluate --compare my-sft --compare my-ppo --data heldout.jsonl --judges.gold judge.py:score`

On held-out prompts every model answers once, at temperature 1; Python judges score the answers, the first judge decides who wins (ties
count half), and intervals are bootstrapped over prompts (Efron 1979). KL is from the stage it is compared with, in nats per answer,
estimated on the stage's own samples. `pairs` measures a reward model, `texts` the held-out loss. Ends with a table and one HTML page.
Left out: model judges, benchmarks.
"""

from __future__ import annotations

import json
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from align import core, judge
from align.data.examples import Example
from align.data.formats import read_conversations, read_preferences, read_prompts
from align.data.records import Prompt
from align.errors import InputError
from align.generate import sample
from align.job import Job, Outcome, Stage
from align.recipe import File, Place, Ref, Runtime, SpecialTokens, StageConfig, Texts
from align.report.html import html
from align.report.lists import lineage_text
from align.report.summary import Answer, Report, Sample
from align.report.table import table
from align.report.training import read_curves, read_reinforced
from align.stage import execute, main
from align.store import Artifact, Store

if TYPE_CHECKING:
    from align.core.roles import Roles

KL_SAMPLES = 256
MEASURES = {"kl", "eos_rate", "length", "loss", "perplexity", "reward"}
SHOWN = 12


class Config(StageConfig):
    """Evaluation"""

    compare: list[Ref] = Field(min_length=1)
    """Artifacts to measure, all on one base: names, digests, or stages of the recipe."""
    against: str | None = None
    """The one that win rates and KL are taken against; without it, the first of compare."""
    include_base: bool = True
    """Measure the bare base too."""
    data: File | None = None
    """Held-out prompts to answer; their other keys go to the judges as columns."""
    judges: dict[str, Place] = Field(default_factory=dict)
    """Measure -> FILE.py:FUNCTION in TRL's reward signature; the first decides who wins."""
    baselines: list[str] = Field(default_factory=list)
    """Columns of data that hold answers to judge beside the models', such as demonstrations."""
    special_tokens: SpecialTokens = "error"
    """What to do with rows that hold the tokenizer's special tokens as text: stop, read them as plain text, or keep them as they are."""
    max_new_tokens: PositiveInt = 128
    """Longest answer in tokens."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature."""
    stop: Texts = Field(default_factory=list)
    """Texts that end an answer where they appear, beside every end-of-turn token, and are left out of it; the flag once for each."""
    limit: PositiveInt | None = None
    """Take only the first prompts."""
    reward: Ref | None = None
    """A reward artifact to measure on pairs, and to score the answers with."""
    pairs: File | None = None
    """Held-out preference pairs for the reward model."""
    texts: File | None = None
    """Held-out conversations for the loss of every model."""
    max_length: PositiveInt = 1024
    """Longest pair or conversation in tokens; longer ones are left out and counted."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the base computes in; auto is bf16 where the hardware computes it natively, else fp32."""
    tokens_per_microbatch: Annotated[PositiveInt, Runtime] = 4096
    """Tokens in one packed row."""
    threads: Annotated[PositiveInt | None, Runtime] = None
    """CPU threads; without it, as many as torch takes."""

    @property
    def truncate(self) -> str:
        return "drop"

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.data is None:
            why = "there are no prompts to answer. Set data, or leave it out."
            found |= dict.fromkeys(("max_new_tokens", "temperature", "stop", "limit", "baselines"), why)
        if self.reward is None:
            found["pairs"] = "there is no reward model to measure on them. Set reward, or leave it out."
        if self.texts is None and (self.pairs is None or self.reward is None):
            found["max_length"] = "there are no pairs or texts to read. Leave it out."
        return found


def run(config: Config, store: Store) -> Artifact:
    """Measure `config.compare`; a `report` artifact with metrics, samples, a table and a page."""
    return execute(STAGE, config, store)


def work(job: Job) -> Outcome:
    config = job.config
    compared = {role.removeprefix("compare/"): a for role, a in job.parents.items() if role.startswith("compare/")}
    against = config.against or next(iter(compared))
    if against not in compared:
        raise InputError(f"against: {against!r} is not among what is compared ({', '.join(compared)}).")
    check_names(config, list(compared))
    if config.judges and config.data is None:
        raise InputError("judges need prompts to answer: set data.")
    if taken := sorted(MEASURES & config.judges.keys()):
        raise InputError(f"judges: {taken[0]} is what evaluate itself measures; call the judge something else.")
    judges = {measure: judge.load(function) for measure, function in config.judges.items()}
    renderer = job.load_renderer()
    prompts = job.read("data", read_prompts)[: config.limit] if config.data else []
    for prompt in prompts:
        if missing := [name for name in config.baselines if name not in prompt.columns]:
            present = ", ".join(prompt.columns) or "none"
            raise InputError(f"{prompt.where}: {missing[0]!r} is among baselines, but this row has only {present}.")
    prompt_ids = renderer.prompts(prompts, config.max_new_tokens, job.context)
    job.say_counts(renderer)
    held_out = renderer.conversations(job.read("texts", read_conversations)) if config.texts else []
    pairs = renderer.preferences(job.read("pairs", read_preferences)) if config.reward and config.pairs else []
    roles = job.load_base()
    metrics: dict[str, Any] = {}
    answers: dict[str, list[dict[str, Any]]] = {}
    models = {**({"base": None} if config.include_base else {}), **compared}
    job.add_role(roles, "against", job.store.folder(compared[against]))
    for name, artifact in models.items():
        job.add_role(roles, "model", job.store.folder(artifact) if artifact else None)
        if prompts:
            core.load.set_up_process(config.threads, config.seed)
            answers[name] = [several[0] for several in sample(roles, "model", renderer, prompt_ids, config, 1)]
            metrics |= {f"{name}/{k}": v for k, v in measure_answers(roles, answers[name], config).items()}
        if held_out:
            found = core.metrics.held_out_loss(roles, "model", held_out, config.tokens_per_microbatch)
            metrics |= {f"{name}/{k.removeprefix('eval/')}": v for k, v in found.items()}
        roles.remove("model")
    if config.reward:
        job.add_role(roles, "reward", job.store.folder(job.parents["reward"]))
        metrics |= measure_reward(roles, pairs, answers, config.tokens_per_microbatch)
    texts = {name: [a["text"] for a in rows] for name, rows in answers.items()}
    texts |= {name: [str(p.columns[name]) for p in prompts] for name in config.baselines}
    scores = {measure: {name: score(prompts, rows) for name, rows in texts.items()} for measure, score in judges.items()}
    metrics |= compare(scores, against)
    write_report(job, metrics, prompts, texts, scores, list(models), against)
    return Outcome(job.folder, "report", renderer.contract(), metrics)


def check_names(config: Config, compared: list[str]) -> None:
    """Every column of the results has a name of its own. Raises: InputError naming two that would share one."""
    taken = {"base": "the bare base (include_base)"} if config.include_base else {}
    taken |= {"reward": "the reward model"} if config.reward else {}
    named = [(name, "compare", "an artifact") for name in compared] + [(name, "baselines", "a column of data") for name in config.baselines]
    for name, key, what in named:
        if name in taken:
            remedy = "set include_base: false or give it another name" if taken[name].startswith("the bare") else "give one another name"
            raise InputError(f"{key}: {what} and {taken[name]} would both be called {name} in the results; {remedy}.")
        taken[name] = what if key == "baselines" else "an artifact of compare"


def measure_answers(roles: Roles, answers: list[dict[str, Any]], config: Config) -> dict[str, float]:
    """Share that ended by itself, length in tokens, and KL from the stage compared with, in nats per answer."""
    examples = [core.rollout.as_example(a["prompt_ids"], [a["ids"]]) for a in answers[:KL_SAMPLES]]
    own = core.metrics.sequence_logprobs(roles, "model", examples, config.tokens_per_microbatch)
    other = core.metrics.sequence_logprobs(roles, "against", examples, config.tokens_per_microbatch)
    gaps = [float(o[0].sum() - r[0].sum()) for o, r in zip(own, other, strict=True)]
    return {
        "kl": fmean(gaps),
        "eos_rate": fmean(a["ended"] for a in answers),
        "length": fmean(len(a["ids"]) for a in answers),
    }


def measure_reward(roles: Roles, pairs: list[Example], answers: dict[str, list[dict[str, Any]]], budget: int) -> dict[str, Any]:
    """The reward model's accuracy on held-out pairs, and its mean score of every model's answers."""
    metrics: dict[str, Any] = {}
    if pairs:
        found = core.metrics.pair_statistics(core.metrics.scores(roles, "reward", pairs, budget), core.metrics.completion_lengths(pairs))
        metrics |= {f"reward/{k.removeprefix('eval/')}": v for k, v in found.items()}
    for name, rows in answers.items():
        examples = [core.rollout.as_example(a["prompt_ids"], [a["ids"]]) for a in rows]
        metrics[f"{name}/reward"] = float(core.metrics.scores(roles, "reward", examples, budget).mean())
    return metrics


def compare(scores: dict[str, dict[str, list[float]]], against: str) -> dict[str, Any]:
    """Mean of every measure with its interval; and by the first judge how often each beats `against`, ties half."""
    metrics: dict[str, Any] = {}
    for i, (measure, by_name) in enumerate(scores.items()):
        for name, values in by_name.items():
            metrics[f"{name}/{measure}"] = fmean(values)
            metrics[f"{name}/{measure}_ci95"] = list(core.metrics.bootstrap(values))
            if i == 0 and name != against:
                wins = [0.5 + ((v > o) - (v < o)) / 2 for v, o in zip(values, by_name[against], strict=True)]
                metrics[f"{name}/win_rate_vs_{against}"] = fmean(wins)
                metrics[f"{name}/win_rate_vs_{against}_ci95"] = list(core.metrics.bootstrap(wins))
    return metrics


def write_report(
    job: Job,
    metrics: dict[str, Any],
    prompts: list[Prompt],
    texts: dict[str, list[str]],
    scores: dict[str, dict[str, list[float]]],
    models: list[str],
    against: str,
) -> None:
    """samples.jsonl, table.txt and report.html."""
    headline = next(iter(scores), "reward" if job.config.reward else "loss")
    with open(job.folder / "samples.jsonl", "w", encoding="utf-8") as file:
        for i, prompt in enumerate(prompts):
            row: dict[str, Any] = prompt.row()
            row |= {name: {"text": rows[i], **{m: by_name[name][i] for m, by_name in scores.items()}} for name, rows in texts.items()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    artifacts = {role.split("/")[-1]: a for role, a in job.parents.items()}
    costs = {name: found for name, a in artifacts.items() if (found := job.store.cost(a))}
    report = Report(
        title=job.title,
        stages=models,
        metrics=metrics,
        baselines=job.config.baselines,
        reference=against,
        headline=headline,
        note=f"{len(prompts):,} held-out prompts, one answer each at temperature {job.config.temperature:g}; "
        "95 % intervals by bootstrap over prompts.",
        curves={name: curves for name, a in artifacts.items() if (curves := read_curves(job.store, a))},
        reinforced={name: shown for name, a in artifacts.items() if (shown := read_reinforced(job.store, a))},
        samples=[
            Sample(
                "\n".join(m.content for m in prompt.messages),
                {name: Answer(texts[name][i], scores[headline][name][i] if headline in scores else None) for name in models},
            )
            for i, prompt in enumerate(prompts[:SHOWN])
        ],
        costs=costs,
        lineage="\n\n".join(lineage_text(job.store, a.digest) for a in artifacts.values()),
    )
    (job.folder / "report.html").write_text(html(report), encoding="utf-8")
    (job.folder / "table.txt").write_text(table(report), encoding="utf-8")


STAGE = Stage("evaluate", 4, Config, {"compare": ("adapter",), "reward": ("reward",)}, work, encoder_decoders=True)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
