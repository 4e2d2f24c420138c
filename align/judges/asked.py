"""What a language model is asked of answers, in a judge's place: the settings. `align.measures.judgement` asks it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from align.recipe import Ref, Settings

NAME = "judge_prompt"
"""What its score is called in figures and weights."""

PLACES = ("prompt", "answer", "answer_a", "answer_b")
"""What a template may have in braces."""
_BRACES = re.compile(r"\{\{(\w+)\}\}|\{([^{}]+)\}")
"""A word in doubled braces, which is text in single ones; and what may be a place."""


def filled(template: str, put: Mapping[str, str]) -> str:
    """The template with texts in its places, whatever braces these have."""
    return _BRACES.sub(lambda found: f"{{{found[1]}}}" if found[1] else put.get(found[2], found[0]), template)


def count(template: str, *places: str) -> int:
    """How often a template has any of these places."""
    return sum(found[2] in places for found in _BRACES.finditer(template))


def _asks(text: str) -> str:
    """Raises: ValueError for a text that does not show what is to be judged, or has a place that nothing fills."""
    for inside in (found[2] for found in _BRACES.finditer(text) if found[2] and found[2] not in PLACES):
        near = difflib.get_close_matches(inside.strip().lower(), PLACES, 1, 0.8)
        if near or inside.strip().isidentifier():
            hint = f"did you mean {{{near[0]}}}?" if near else "it is filled with {prompt}, and answers."
            raise ValueError(f"nothing fills {{{inside}}}; {hint} A word in braces that is text has them twice")
    shown = {name for name in PLACES if count(text, name)}
    if shown not in ({"prompt", "answer"}, {"prompt", "answer_a", "answer_b"}):
        has = ", ".join(f"{{{name}}}" for name in sorted(shown)) or "none"
        raise ValueError(f"expected {{prompt}}, and {{answer}} or both of {{answer_a}} and {{answer_b}}; it has {has}")
    return text


def compares(judge_prompt: object) -> bool:
    """Whether it is asked of two answers, and not of one."""
    return count(str(judge_prompt), "answer_a") > 0


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
