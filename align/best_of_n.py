"""The best of several answers, as demonstrations.  `python -m align.best_of_n --parent my-sft --reward my-reward --data
prompts.jsonl --name my-best`

Rejection sampling (Touvron et al. 2023, arXiv 2307.09288, section 3.2.3): n answers to each prompt are sampled at
temperature 1 and scored by a reward artifact or a Python function, and the best is kept (`keep`: the best few), where
it reaches `min_score`. The result is a `data` artifact that `sft` takes as its `data`; best_of_n and sft by turns are
expert iteration (Anthony et al. 2017, arXiv 1705.08439; recipes/expert-iteration.yaml). Answers that did not end by
themselves are never kept, as `sft` would teach to stop there, and of equal answers to a prompt one. The best of n is at
most log n - (n - 1) / n nats an answer from the policy (Beirami et al. 2024, arXiv 2401.01879). Left out: answers that
are chosen across prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from statistics import fmean
from typing import ClassVar

from align.ground.errors import InputError
from align.ground.terminal import say
from align.recipe import Samples
from align.rl import scored_answers
from align.stage.command import main
from align.stage.describe import Outcome
from align.stage.execute import execute
from align.stage.workbench import Workbench
from align.store import Artifact, Store


class Config(scored_answers.ScoredConfig):
    """Best of n"""

    apart: ClassVar[frozenset[str]] = frozenset({"keep"})
    """As in `TrainConfig`."""

    n: Samples = 8
    """Answers sampled per prompt."""
    keep: Samples = 1
    """Answers kept per prompt, at most, the best first; with `keep` as large as n, all that reach min_score."""
    min_score: float | None = None
    """Keep only answers whose score is at least this; a prompt without one is left out, and counted."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found, n, keep = super().conflicts(given), given.get("n"), given.get("keep")
        if isinstance(n, int) and isinstance(keep, int) and keep > n:
            found.append(f"keep ({keep}) is more than the n ({n}) answers that a prompt has. Lower keep, or raise n.")
        if n == keep and given.get("min_score") is None:
            remedy = "Raise n" if n == 1 else "Lower keep"
            found.append(f"keep is n ({n}), so nothing is chosen. {remedy}, or set min_score.")
        return found


def run(config: Config, store: Store) -> Artifact:
    """Sample and score answers of `config.parent`; a `data` artifact of the best, as demonstrations."""
    return execute(STAGE, config, store)


def work(bench: Workbench) -> Outcome:
    config = bench.config
    renderer, groups = scored_answers.answer_and_score(bench)
    found = scored_answers.figures(groups)
    scored_answers.say_unscored(bench, found, len(groups) * config.n, "are not kept")
    chosen = [(group, best(group, config)) for group in groups]
    rows = [
        {**group.prompt.row(), "completion": group.texts[i], "score": score}
        for group, kept in chosen
        for i, score in kept.items()
    ]
    if not rows:
        raise InputError(
            f"{bench.title}: no answer of {len(groups) * config.n:,} can be kept: {found['eos_rate']:.0%} ended by "
            f"themselves, their mean score is {found['score/mean']:.3f}. Raise max_new_tokens or n, or lower min_score."
        )
    without = sum(not kept for _, kept in chosen)
    scores = [score for _, kept in chosen for score in kept.values()]
    found |= {"rows": len(rows), "prompts_without": without, "score/kept": fmean(scores)}
    say(
        f"{bench.title}: {len(rows):,} answers to {len(groups):,} prompts kept, mean score {found['score/kept']:.3f} "
        f"of {found['score/mean']:.3f} before"
        + (f"; {without:,} prompts have none that ended and scored enough" if without else "")
    )
    scored_answers.write(bench.folder, rows)
    return Outcome(bench.folder, "data", renderer.contract(), found)


def best(group: scored_answers.Group, config: Config) -> dict[int, float]:
    """The answers of a prompt to keep, the best first, and their scores; of equal texts and of equal scores the one
    drawn first."""
    least = -inf if config.min_score is None else config.min_score
    able = {
        i: score
        for i, score in enumerate(group.scores)
        if score is not None and score >= least and group.ended[i] and group.texts[i].strip()
    }
    distinct: dict[str, int] = {}
    for i in sorted(able, key=lambda i: -able[i]):
        distinct.setdefault(group.texts[i], i)
    return {i: able[i] for i in list(distinct.values())[: config.keep]}


STAGE = scored_answers.from_answers(
    "best_of_n",
    version=1,
    config=Config,
    work=work,
    does="the best of several answers to each prompt, by a judge or a reward model",
    feeds="sft",
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
