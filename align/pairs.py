"""Preference pairs from a model's own answers.  `python -m align.pairs --parent my-sft --data prompts.jsonl --judge
judge.py:score`

Samples several answers to each prompt at temperature 1, has a Python function (or the people behind it) or a reward
artifact score them, and keeps two answers of different score per prompt, drawn at random. The result is a `data`
artifact that `reward` and `dpo` take as their `data`. `flip` turns round a share of the labels, to imitate annotators
who err. Left out: annotation by hand, pairs across prompts.
"""

from __future__ import annotations

from random import Random

from pydantic import Field, NonNegativeFloat

from align.ground.errors import InputError
from align.ground.terminal import say
from align.recipe import Count
from align.rl import scored_answers
from align.stage.command import main
from align.stage.describe import Outcome
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store


class Config(scored_answers.ScoredConfig):
    """Pairs"""

    pairs_per_prompt: Count = 1
    """Pairs kept per prompt, at most; no answer stands in two of them."""
    flip: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of the pairs whose label is turned round."""
    min_gap: NonNegativeFloat = 0.0
    """Keep a pair only where the scores differ by more than this."""


def run(config: Config, store: Store) -> Artifact:
    """Sample and judge answers of `config.parent`; a `data` artifact of preference rows."""
    return execute(STAGE, config, store)


def work(bench: Workbench) -> Outcome:
    config, draw = bench.config, Random(bench.config.seed)
    renderer, groups = scored_answers.answer_and_score(bench)
    found = scored_answers.figures(groups)
    scored_answers.say_unscored(bench, found, len(groups) * config.n, "stand in no pair")
    rows = []
    for group in groups:
        for better, worse in choose(group.texts, group.scores, config, draw):
            flipped = draw.random() < config.flip
            chosen, rejected = (worse, better) if flipped else (better, worse)
            texts = {"chosen": group.texts[chosen], "rejected": group.texts[rejected], "flipped": flipped}
            cut = {"chosen_cut": not group.ended[chosen], "rejected_cut": not group.ended[rejected]}
            rows.append({**group.prompt.row(), **texts, **cut})
    if not rows:
        raise InputError(
            f"{bench.title}: no prompt gave two answers of different score; sample more per prompt (n), or look at the "
            "judge."
        )
    say(f"{bench.title}: {len(rows):,} pairs from {len(groups):,} prompts; mean score {found['score/mean']:.3f}")
    scored_answers.write(bench.folder, rows)
    flips = sum(row["flipped"] for row in rows) / len(rows)
    return Outcome(bench.folder, "data", renderer.contract(), {"pairs": len(rows), **found, "flipped": flips})


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


STAGE = scored_answers.from_answers(
    "pairs",
    version=5,
    config=Config,
    work=work,
    does="a model's own answers, ordered by a judge",
    feeds="reward",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
