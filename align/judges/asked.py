"""What a language model is asked of answers, in a judge's place: the settings. `align.measures.judgement` asks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from align.recipe import Ref, Settings

NAME = "judge_prompt"
"""What its score is called in figures and weights."""


def _asks(text: str) -> str:
    """Raises: ValueError for a text that does not show what is to be judged."""
    shown = {name for name in ("prompt", "answer", "answer_a", "answer_b") if f"{{{name}}}" in text}
    if shown not in ({"prompt", "answer"}, {"prompt", "answer_a", "answer_b"}):
        has = ", ".join(f"{{{name}}}" for name in sorted(shown)) or "none"
        raise ValueError(f"expected {{prompt}}, and {{answer}} or both of {{answer_a}} and {{answer_b}}; it has {has}")
    return text


def compares(judge_prompt: object) -> bool:
    """Whether it is asked of two answers, and not of one."""
    return "{answer_a}" in str(judge_prompt)


class AskedModel(Settings):
    """A model as judge"""

    judge_prompt: Annotated[str, AfterValidator(_asks)] | None = None
    """What a model is asked of answers, in a judge's place. A text with {prompt} and {answer}, which it is to answer
    by Yes or No, or with {prompt}, {answer_a} and {answer_b}, by A or B; scores are made of the log-probs of its
    verdicts, and of two answers it is asked in both orders."""
    judge_model: Ref | None = None
    """The adapter artifact that is asked, on the same base; without it, the base itself."""

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if self.judge_prompt is None:
            found["judge_model"] = "judge_prompt, which says what it is asked, is not set. Set it, or leave this out."
        return found


def answers_to_compare(given: Mapping[str, Any], setting: str | None) -> list[str]:
    """What is wrong where it compares two answers to a prompt, and `setting` leaves each prompt one; None is a stage
    that always does."""
    several = given.get(setting) if setting else None
    if not compares(given.get("judge_prompt")) or (isinstance(several, int) and several > 1):
        return []
    if setting is None:
        return ["judge_prompt compares two answers, and here a prompt has one. Ask of one {answer}."]
    return [f"judge_prompt compares two answers, and {setting} is 1. Raise {setting}, or ask of one {{answer}}."]
