"""A language model as judge of answers, by the token that tells its two verdicts apart: deterministic.

A template with `{answer}` asks of each answer by itself, and its score is log p(Yes) - log p(No). One with `{answer_a}`
and `{answer_b}` asks which of two is better, in both orders, as models favour one place (Zheng et al. 2023, arXiv
2306.05685, section 3.3): an answer's score is how likely it wins, on average over the other answers to its prompt, of A
and B alone. `{prompt}` is what was answered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import permutations

import numpy as np

from align.data.examples import Example
from align.data.records import Message, Preference, Prompt
from align.measures.passes import sequence_logprobs
from align.models.roles import Roles
from align.rendering.render import Renderer

PAIRWISE, ALONE = ("A", "B"), ("Yes", "No")
"""What a judge says first: that the first answer is better, or that an answer is good; and the opposite."""


def scores(
    roles: Roles,
    role: str,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[str]],
    template: str,
    budget: int,
) -> list[list[float]]:
    """The score of every answer, by prompt."""
    if "{answer_a}" not in template:
        asked = [
            filled(template, prompt, answer=text)
            for prompt, each in zip(prompts, answers, strict=True)
            for text in each
        ]
        found = iter(favour(roles, role, renderer, asked, ALONE, budget))
        return [[next(found) for _ in each] for each in answers]
    pairs = [list(permutations(range(len(each)), 2)) for each in answers]
    asked = [
        filled(template, prompt, answer_a=each[i], answer_b=each[j])
        for prompt, each, orders in zip(prompts, answers, pairs, strict=True)
        for i, j in orders
    ]
    found = iter(favour(roles, role, renderer, asked, PAIRWISE, budget))
    out = []
    for each, orders in zip(answers, pairs, strict=True):
        wins = [0.0] * len(each)
        for i, j in orders:
            first = 1 / (1 + np.exp(-next(found)))  # how likely A, which is i, is better
            wins[i] += float(first)
            wins[j] += float(1 - first)
        out.append([won / (2 * (len(each) - 1)) for won in wins])
    return out


def filled(template: str, prompt: Prompt, **answers: str) -> str:
    """The template with a prompt and answers in it, whatever braces these have."""
    said = prompt.messages
    text = said[0].content if len(said) == 1 else "\n\n".join(f"{m.role}: {m.content}" for m in said)
    put = {"prompt": text, **answers}
    return re.sub(r"\{(" + "|".join(put) + r")\}", lambda found: put[found[1]], template)


def favour(
    roles: Roles, role: str, renderer: Renderer, asked: Sequence[str], verdicts: tuple[str, str], budget: int
) -> list[float]:
    """For every message that is asked, log p(first verdict) - log p(second) of the first token in which the two differ,
    rendered as the model's own answers are."""
    first, second = ((Message("assistant", verdict),) for verdict in verdicts)
    records = [Preference((Message("user", text),), first, second, where="judge_prompt") for text in asked]
    examples = []
    for example in renderer.preferences(records):
        one, other = example.sequences
        apart = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        counts = [False] * apart + [True]
        examples.append(Example((one[: apart + 1], other[: apart + 1]), (counts, counts), apart))
    found = sequence_logprobs(roles, role, examples, budget)
    return [float(yes.sum() - no.sum()) for yes, no in found]
