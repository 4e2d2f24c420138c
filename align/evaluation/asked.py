"""What judges say of models' answers, and a model that is asked (`align.measures.judgement`): of each by itself, or
against the answers of the model that is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from align import judges, measures
from align.data.records import Prompt
from align.evaluation import answers
from align.evaluation.answers import Scores
from align.judges.asked import NAME, compares
from align.stage import on_base

if TYPE_CHECKING:
    from align.models.roles import Roles
    from align.rendering.render import Renderer
    from align.stage.workbench import Workbench

Texts = Sequence[Sequence[str]]
"""(prompts, answers to each)."""


@dataclass(frozen=True)
class Verdicts:
    """`scores`: by model, (prompts, answers to each), in [0, 1]: how likely an answer is good, or how likely it wins
    over those of the model that is compared with, on average; None where it cannot be asked. `wins`: where it is asked
    of two, (prompts,): the share of an answer's comparisons that are won, ties counting half; without prompts of which
    it cannot be asked."""

    scores: Scores
    wins: dict[str, np.ndarray] = field(default_factory=dict)


def judged(
    bench: Workbench,
    roles: Roles,
    renderer: Renderer,
    prompts: list[Prompt],
    texts: dict[str, list[list[str]]],
    ids: dict[str, list[list[list[int]]]],
    functions: dict[str, judges.Judge],
    against: str,
) -> tuple[dict[str, Scores], dict[str, np.ndarray] | None]:
    """By judge and model the scores of its answers; and by model how often these win, where who says that is a model
    that is asked of two answers."""
    config = bench.config
    found_by = {name: answers.judged(functions, prompts, rows, ids[name]) for name, rows in texts.items()}
    scores = {measure: {name: found[measure] for name, found in found_by.items()} for measure in functions}
    if not config.judge_prompt:
        return scores, None
    on_base.add_judge(bench, roles)
    asks = measures.judgement.of_questions(renderer, bench.context)
    how = (against, config.judge_prompt, config.tokens_per_microbatch)
    found = verdicts(roles, asks, prompts, texts, *how)
    return {**scores, NAME: found.scores}, None if functions else found.wins


def verdicts(
    roles: Roles,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    texts: Mapping[str, Texts],
    against: str,
    template: str,
    budget: int,
) -> Verdicts:
    """Verdicts of role "judge" on every model's answers. `renderer`: as `judgement.of_questions` gives it."""
    if not compares(template):
        scores: Scores = {}
        for name, rows in texts.items():
            found = measures.judgement.scores(roles, "judge", renderer, prompts, rows, template, budget)
            scores[name] = [
                [None if score is None else measures.judgement.sigmoid(score) for score in each] for each in found
            ]
        return Verdicts(scores)
    tables = {
        name: duels(roles, renderer, prompts, rows, texts[against], template, budget) for name, rows in texts.items()
    }
    return Verdicts(
        {name: [[_mean(row) for row in table] for table in found] for name, found in tables.items()},
        {name: np.array([share for share in map(_won, found) if share is not None]) for name, found in tables.items()},
    )


def _mean(row: np.ndarray) -> judges.Score:
    """Of what there is; None where there is nothing."""
    known = row[~np.isnan(row)]
    return float(known.mean()) if len(known) else None


def _won(table: np.ndarray) -> judges.Score:
    return _mean((0.5 + np.sign(table - 0.5) / 2).ravel())


def duels(
    roles: Roles,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    own: Texts,
    others: Texts,
    template: str,
    budget: int,
) -> list[np.ndarray]:
    """Of each prompt (n, m): how likely each of its `own` answers wins over each of `others`, nan where it cannot be
    asked; equal ones draw."""
    found = [np.full((len(each), len(against)), 0.5) for each, against in zip(own, others, strict=True)]
    places, asked = [], []
    for p, prompt in enumerate(prompts):
        for (i, one), (j, other) in product(enumerate(own[p]), enumerate(others[p])):
            if one != other:
                places.append((p, i, j))
                asked.append((prompt, one, other))
    won = measures.judgement.beats(roles, "judge", renderer, asked, template, budget)
    for (p, i, j), probability in zip(places, won, strict=True):
        found[p][i, j] = np.nan if probability is None else probability
    return found
