"""A language model as judge of answers, by the token that tells its two verdicts apart: deterministic.

A template with `{answer}` asks of each answer by itself, and its score is log p(Yes) - log p(No). One with `{answer_a}`
and `{answer_b}` asks which of two is better, in both orders, as models favour one place (Zheng et al. 2023, arXiv
2306.05685, section 3.3): an answer's score is how likely it wins, on average over the other answers to its prompt, of A
and B alone. `{prompt}` is what was answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean

import numpy as np

from align.data.counts import Counts
from align.data.examples import Example
from align.data.records import Message, Preference, Prompt
from align.ground.errors import AlignError, InputError
from align.ground.terminal import counted, say
from align.judges import asked as place
from align.judges.asked import compares
from align.judges.scores import Score
from align.measures.passes import token_gaps
from align.models.roles import Roles
from align.rendering.render import Renderer
from align.rendering.special import Policy

PAIRWISE, ALONE = ("A", "B"), ("Yes", "No")
"""What a judge says first: that the first answer is better, or that an answer is good; and the opposite."""

NO_LIMIT = 1 << 40


def scores(
    roles: Roles,
    role: str,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[str]],
    template: str,
    budget: int,
) -> list[list[Score]]:
    """The score of every answer, by prompt; None where what is asked of it is longer than the context. `renderer`: as
    `of_questions` gives it."""
    if not compares(template):
        asked = [
            (prompt.where, filled(template, prompt, answer=text))
            for prompt, each in zip(prompts, answers, strict=True)
            for text in each
        ]
        found = iter(favour(roles, role, renderer, asked, ALONE, budget))
        return [[next(found) for _ in each] for each in answers]
    pairs = [list(combinations(range(len(each)), 2)) for each in answers]
    duels = [
        (prompt, each[i], each[j]) for prompt, each, two in zip(prompts, answers, pairs, strict=True) for i, j in two
    ]
    found = iter(beats(roles, role, renderer, duels, template, budget))
    out: list[list[Score]] = []
    for each, two in zip(answers, pairs, strict=True):
        wins: list[list[float]] = [[] for _ in each]
        for i, j in two:
            first = next(found)
            if first is not None:
                wins[i].append(first)
                wins[j].append(1 - first)
        out.append([fmean(won) if won else None for won in wins])
    return out


def beats(
    roles: Roles, role: str, renderer: Renderer, duels: Sequence[tuple[Prompt, str, str]], template: str, budget: int
) -> list[Score]:
    """How likely the first of two answers to a prompt wins, on average over the two orders in which it is asked; None
    where one of these is longer than the context."""
    asked = [
        (prompt.where, filled(template, prompt, answer_a=first, answer_b=second))
        for prompt, *two in duels
        for first, second in (two, two[::-1])
    ]
    found = favour(roles, role, renderer, asked, PAIRWISE, budget)
    return [
        None if a is None or b is None else (sigmoid(a) + 1 - sigmoid(b)) / 2
        for a, b in zip(found[0::2], found[1::2], strict=True)
    ]


def sigmoid(gap: float) -> float:
    return float(np.exp(-np.logaddexp(0.0, -gap)))


def of_questions(renderer: Renderer, context: int) -> Renderer:
    """A renderer by the same text contract of what a judge is asked: whole, kept nowhere, and as plain text, whatever
    special tokens an answer spells, unless these are to act."""
    policy: Policy = "keep" if renderer.special_tokens == "keep" else "text"
    own = replace(
        renderer,
        max_length=context,
        limit="the model's context",
        truncate="error",
        special_tokens=policy,
        bad_rows="error",
        counts=Counts(),
        keep=None,
    )
    own.turns.special.rows = renderer.turns.special.rows
    return own


def check_room(
    renderer: Renderer,
    prompts: Sequence[Prompt],
    template: str,
    new_tokens: int,
    context: int,
    written: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> None:
    """The longest question about answers of `new_tokens` fits, before there are any, and so does each about an answer
    that is `written` already: by its name, (prompts, answers to each); it holds all that its prompt says. Raises:
    InputError."""
    check_shown(prompts)
    orders = [("answer_a", "answer_b"), ("answer_b", "answer_a")] if compares(template) else [("answer",)]
    sampled = place.count(template, *orders[0])
    asked: list[tuple[Prompt, dict[str, str], str, int]] = [(prompt, {}, "", sampled) for prompt in prompts]
    for name, rows in (written or {}).items():
        for first, *others in orders:
            rest = place.count(template, *others)
            with_it = f" with the answer in {name}"
            asked += [(prompt, {first: text}, with_it, rest) for prompt, (text,) in zip(prompts, rows, strict=True)]
    blank, verdicts = dict.fromkeys(orders[0], ""), PAIRWISE if compares(template) else ALONE
    records = [_asked(filled(template, prompt, **blank | put), verdicts, prompt.where) for prompt, put, *_ in asked]
    examples = of_questions(renderer, NO_LIMIT).preferences(records)
    for (prompt, _, with_it, answers), example in zip(asked, examples, strict=True):
        tokens = max(map(len, example.sequences))
        if tokens + answers * new_tokens > context:
            more = f", and {answers} x {new_tokens} more in answers" if answers else ""
            raise InputError(
                f"{prompt.where}: what judge_prompt asks of this prompt{with_it} has {tokens:,} tokens{more}, but the "
                f"model's context is {context:,}. {'Lower max_new_tokens, or shorten' if answers else 'Shorten'} "
                "judge_prompt or the row."
            )


def check_shown(prompts: Sequence[Prompt]) -> None:
    """Prompts are texts of messages and nothing beside them. Raises: InputError."""
    for prompt in prompts:
        said = {
            "tools": prompt.tools,
            "tool_calls": any(m.tool_calls for m in prompt.messages),
            "reasoning_content": any(m.reasoning for m in prompt.messages),
        }
        if lost := [name for name, there in said.items() if there]:
            raise InputError(
                f"{prompt.where}: has {' and '.join(lost)}, but {{prompt}} in judge_prompt holds the contents of "
                "messages alone, so the model that is asked would not see that. Leave the row out, write it into the "
                "contents, or ask a Python function (a judge), which gets all of the row."
            )


def filled(template: str, prompt: Prompt, **answers: str) -> str:
    """The template with a prompt and answers in it, whatever braces these have."""
    said = prompt.messages
    text = said[0].content if len(said) == 1 else "\n\n".join(f"{m.role}: {m.content}" for m in said)
    return place.filled(template, {"prompt": text, **answers})


def favour(
    roles: Roles,
    role: str,
    renderer: Renderer,
    asked: Sequence[tuple[str, str]],
    verdicts: tuple[str, str],
    budget: int,
) -> list[Score]:
    """For every message that is asked, with where its prompt is from, log p(first verdict) - log p(second) of the first
    token in which the two differ, rendered as the model's own answers are; None, and said, where it is longer than the
    context, as an answer may become that is made tokens again. Raises: AlignError where one is no number."""
    records = [_asked(text, verdicts, where) for where, text in asked]
    examples = []
    for example in of_questions(renderer, NO_LIMIT).preferences(records):
        one, other = example.sequences
        apart = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        counts = [False] * apart + [True]
        examples.append(Example((one[: apart + 1], other[: apart + 1]), (counts, counts), apart))
    lengths = [example.shared + 1 for example in examples]
    fit = [length <= renderer.max_length for length in lengths]
    if not all(fit):
        worst = max(range(len(lengths)), key=lengths.__getitem__)
        say(
            f"judge_prompt: {counted(fit.count(False), 'question')} of {len(fit):,} not asked, and without a score: "
            f"with the answers, made tokens again, the longest ({asked[worst][0]}) has {lengths[worst]:,} tokens, and "
            f"the model's context is {renderer.max_length:,}"
        )
    asked_of = [example for example, short in zip(examples, fit, strict=True) if short]
    found = [float(gap) for gap in token_gaps(roles, role, asked_of, budget)]
    if bad := sum(not np.isfinite(gap) for gap in found):
        raise AlignError(
            f"judge_prompt: the model that is asked gave {bad} of {len(found)} questions a score that is not finite; "
            "every answer needs a number."
        )
    each = iter(found)
    return [next(each) if short else None for short in fit]


def _asked(text: str, verdicts: tuple[str, str], where: str) -> Preference:
    first, second = ((Message("assistant", verdict),) for verdict in verdicts)
    return Preference((Message("user", text),), first, second, where=where)
