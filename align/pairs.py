"""Preference pairs from a model's own answers.  `python -m align.pairs --parent my-sft --data prompts.jsonl --judge
judge.py:score`

Samples several answers to each prompt at temperature 1, has a Python function (or the people behind it) score them, and
keeps two answers of different score per prompt, drawn at random. The result is a `data` artifact that `reward` and
`dpo` take as their `data`. `flip` turns round a share of the labels, to imitate annotators who err. Left out:
annotation by hand, pairs across prompts.
"""

from __future__ import annotations

import json
from random import Random
from statistics import fmean

from pydantic import Field, NonNegativeFloat, PositiveInt

from align import judges, memory
from align.data.formats import read_prompts
from align.ground.errors import InputError
from align.ground.terminal import say
from align.judges.scores import none_at_all
from align.recipe import File, Place, Processes, RowSettings, Samples, Sampling, TextStage
from align.sampling.answers import sample
from align.stage import on_base, reading
from align.stage.command import main
from align.stage.describe import Outcome, Stage, all_with
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store


class Config(Sampling, TextStage, RowSettings, Processes):
    """Pairs"""

    data: File
    """Prompts; their other keys go to the judge as columns."""
    judge: Place
    """FILE.py:FUNCTION, called as TRL calls reward functions; higher is better, and None leaves an answer out."""
    n: Samples = 4
    """Answers sampled per prompt."""
    pairs_per_prompt: PositiveInt = 1
    """Pairs kept per prompt, at most; no answer stands in two of them."""
    flip: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of the pairs whose label is turned round."""
    min_gap: NonNegativeFloat = 0.0
    """Keep a pair only where the scores differ by more than this."""
    limit: PositiveInt | None = None
    """Take only the first prompts."""


def run(config: Config, store: Store) -> Artifact:
    """Sample and judge answers of `config.parent`; a `data` artifact of preference rows."""
    return execute(STAGE, config, store)


def work(bench: Workbench) -> Outcome:
    config = bench.config
    prompts = reading.read(bench, "data")[: config.limit]
    score = judges.load(config.judge, prompts, bench.settings["judge"])
    renderer = bench.load_renderer()
    prompts, prompt_ids = renderer.prompts(prompts, config.max_new_tokens, bench.context)
    bench.say_counts(renderer)
    roles = bench.load_base()
    on_base.add_reference(bench, roles)
    answers = sample(roles, "reference", renderer, prompt_ids, config, config.n)
    draw = Random(bench.config.seed)
    everyone = [a for several in answers for a in several]
    everything = score(
        [p for p in prompts for _ in range(config.n)], [a["text"] for a in everyone], [a["ids"] for a in everyone]
    )
    known = [s for s in everything if s is not None]
    if not known:
        raise none_at_all([config.judge], len(everything))
    if unscored := len(everything) - len(known):
        say(f"{bench.title}: {unscored:,} of {len(everything):,} answers got no score (None) and stand in no pair")
    rows, ended = [], 0
    for i, (prompt, several) in enumerate(zip(prompts, answers, strict=True)):
        texts, scores = [a["text"] for a in several], everything[i * config.n : (i + 1) * config.n]
        ended += sum(a["ended"] for a in several)
        for better, worse in choose(texts, scores, config, draw):
            flipped = draw.random() < config.flip
            chosen, rejected = (worse, better) if flipped else (better, worse)
            row = {**prompt.row(), "chosen": texts[chosen], "rejected": texts[rejected], "flipped": flipped}
            rows.append(
                row | {"chosen_cut": not several[chosen]["ended"], "rejected_cut": not several[rejected]["ended"]}
            )
    if not rows:
        raise InputError(
            f"{bench.title}: no prompt gave two answers of different score; sample more per prompt (n), or look at the "
            "judge."
        )
    say(f"{bench.title}: {len(rows):,} pairs from {len(prompts):,} prompts; mean score {fmean(known):.3f}")
    (bench.folder / "data.jsonl").write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8"
    )
    metrics = {
        "pairs": len(rows),
        "prompts": len(prompts),
        "score/mean": fmean(known),
        **({"unscored": unscored} if unscored else {}),
        "flipped": sum(r["flipped"] for r in rows) / len(rows),
        "eos_rate": ended / (len(prompts) * config.n),
    }
    return Outcome(bench.folder, "data", renderer.contract(), metrics)


def choose(texts: list[str], scores: list[float | None], config: Config, draw: Random) -> list[tuple[int, int]]:
    """(better, worse) answers of one prompt that have a score, drawn at random; no answer stands in two pairs."""
    known = {i: s for i, (text, s) in enumerate(zip(texts, scores, strict=True)) if text.strip() and s is not None}
    candidates = [(i, j) for i in known for j in known if known[i] - known[j] > config.min_gap]
    draw.shuffle(candidates)
    pairs: list[tuple[int, int]] = []
    for pair in candidates:
        if len(pairs) < config.pairs_per_prompt and not any(set(pair) & set(other) for other in pairs):
            pairs.append(pair)
    return pairs


STAGE = Stage(
    "pairs",
    version=5,
    config=Config,
    inputs={"parent": ("adapter", "model")},
    work=work,
    makes=("data",),
    reads=all_with(read_prompts),
    footprint=memory.Footprint(memory.kinds.pairs, memory.rows.whole),
    does="a model's own answers, ordered by a judge",
    encoder_decoders=True,
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
