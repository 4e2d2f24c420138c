"""What a model that is asked says of answers (`align.measures.judgement`): of each by itself, or against the answers of
the model that is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from align import measures
from align.data.records import Prompt
from align.evaluation.answers import Scores
from align.judges.asked import compares

if TYPE_CHECKING:
    from align.models.roles import Roles
    from align.rendering.render import Renderer

Texts = Sequence[Sequence[str]]
"""(prompts, answers to each)."""


@dataclass(frozen=True)
class Verdicts:
    """`scores`: by model, (prompts, answers to each), in [0, 1]: how likely an answer is good, or how likely it wins
    over those of the model that is compared with, on average. `wins`: where it is asked of two, (prompts,): the share
    of an answer's comparisons that are won, ties counting half."""

    scores: Scores
    wins: dict[str, np.ndarray] = field(default_factory=dict)


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
            scores[name] = [[measures.judgement.sigmoid(score) for score in each] for each in found]
        return Verdicts(scores)
    tables = {
        name: duels(roles, renderer, prompts, rows, texts[against], template, budget) for name, rows in texts.items()
    }
    return Verdicts(
        {name: [[float(p) for p in table.mean(1)] for table in found] for name, found in tables.items()},
        {name: np.array([(0.5 + np.sign(t - 0.5) / 2).mean() for t in found]) for name, found in tables.items()},
    )


def duels(
    roles: Roles,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    answers: Texts,
    others: Texts,
    template: str,
    budget: int,
) -> list[np.ndarray]:
    """Of each prompt (n, m): how likely each of its `answers` wins over each of `others`. Equal ones draw, unasked."""
    found = [np.full((len(each), len(against)), 0.5) for each, against in zip(answers, others, strict=True)]
    places, asked = [], []
    for p, prompt in enumerate(prompts):
        for (i, one), (j, other) in product(enumerate(answers[p]), enumerate(others[p])):
            if one != other:
                places.append((p, i, j))
                asked.append((prompt, one, other))
    won = measures.judgement.beats(roles, "judge", renderer, asked, template, budget)
    for (p, i, j), probability in zip(places, won, strict=True):
        found[p][i, j] = probability
    return found
