"""Answers to prompts as the stages that only ask take them: text and token ids, before a judge or a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from align import sampling

if TYPE_CHECKING:
    from align.models.roles import Roles
    from align.rendering.render import Renderer


class AnswerSettings(Protocol):
    """How answers are sampled."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def stop(self) -> Sequence[str]: ...


def sample(
    roles: Roles, role: str, renderer: Renderer, rows: list[list[int]], config: AnswerSettings, n: int
) -> list[list[dict[str, Any]]]:
    """`n` answers to each prompt's ids: text, token ids, whether it ended by itself; with the prompt's ids under
    "prompt_ids"."""
    sampler = sampling.rollout.sampler(roles, role, renderer, config.stop)
    answers = sampler(rows, n=n, max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    return [
        [
            {"text": renderer.answer(a.ids, config.stop), "ids": a.ids, "ended": a.ended, "prompt_ids": row}
            for a in several
        ]
        for row, several in zip(rows, answers, strict=True)
    ]
