"""Prompts of held-out records, which a stage that learns from examples answers while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from align import sampling
from align.data.records import Conversation, Preference, Prompt, Text
from align.ground.errors import InputError
from align.ground.json import Json
from align.guard.answers import Answers
from align.stage.workbench import Workbench
from align.store import News

if TYPE_CHECKING:
    from align.models.roles import Roles
    from align.rendering.render import Renderer
    from align.sampling.rollout import Sampler

BEGINNING = 32
"""Tokens of a plain text that is to be gone on with, at most; and at most half of it."""


def answers(bench: Workbench) -> Answers:
    """Of the prompts that leave room for an answer. Raises: InputError where there are none."""
    c, renderer = bench.config, own(bench)
    found = [(messages, ids) for messages, ids in openings(renderer, bench.held_out) if ids]
    fit = [(messages, ids) for messages, ids in found if len(ids) + c.watch_tokens <= renderer.max_length]
    if not fit:
        raise InputError(
            f"{bench.title}: watch_prompts is {c.watch_prompts}, but of {len(found):,} held-out prompts none leaves "
            f"room for watch_tokens ({c.watch_tokens}) in {renderer.limit} ({renderer.max_length:,}). Lower it."
        )
    return Answers(
        [messages for messages, _ in fit],
        [ids for _, ids in fit],
        renderer.answer,
        count=c.watch_prompts,
        seed=c.seed,
        max_new_tokens=c.watch_tokens,
        title=bench.title,
        unit="step",
        news=News(bench.run),
    )


def sampler(bench: Workbench, roles: Roles) -> Sampler:
    return sampling.rollout.sampler(roles, "policy", own(bench))


def own(bench: Workbench) -> Renderer:
    """The stage's renderer with counts of its own: what is rendered here is no record that trains."""
    assert bench.renderer is not None
    return replace(bench.renderer, counts=type(bench.renderer.counts)())


def openings(
    renderer: Renderer, records: Sequence[Conversation | Preference | Text]
) -> list[tuple[list[Json], list[int]]]:
    """What is to be answered or gone on with, as messages and as token ids."""
    texts = [record for record in records if isinstance(record, Text)]
    prompts = [prompt_of(record) for record in records if not isinstance(record, Text)]
    found = [
        ([m.plain() for m in prompt.messages], ids)
        for prompt, ids in renderer.prompt_rows([prompt for prompt in prompts if prompt.messages])
    ]
    for example in renderer.texts(texts) if texts else []:
        ids = list(example.sequences[0])
        ids = ids[: min(BEGINNING, len(ids) // 2)]
        found.append(([{"role": "user", "content": renderer.tokenizer.decode(ids, skip_special_tokens=True)}], ids))
    return found


def prompt_of(record: Conversation | Preference) -> Prompt:
    """What comes before the first answer that is learnt."""
    if not isinstance(record, Conversation):
        return Prompt(record.prompt, where=record.where, tools=record.tools)
    said = (i for i, m in enumerate(record.messages) if i >= record.prompt and m.role == "assistant")
    return Prompt(record.messages[: next(said, 0)], where=record.where, tools=record.tools)
