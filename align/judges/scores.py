"""What a judge may give back: a number for each answer, or None."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from decimal import Decimal
from numbers import Real

from align.data.records import Prompt
from align.ground.errors import AlignError

Score = float | None
"""None: the judge gives this answer no score."""


LARGEST = 1e18
"""Of a score either way: its square is a number in fp32 too."""


class WrongReturn(AlignError):
    """A judge gave back something else."""


def checked(name: str, output: object, prompts: Sequence[Prompt]) -> list[Score]:
    """The scores in what a judge gave back: any sequence of numbers, arrays and generators too, one for each of the
    prompts' answers.

    Raises: WrongReturn naming judge, answer, prompt and value.
    """
    expected = f"Expected a list of {len(prompts):,} numbers, or None for no score: one for each answer."
    if inspect.iscoroutine(output):
        output.close()
        raise WrongReturn(f"judge: {name} gave a coroutine, which is awaited of an `async def` alone. Make it one.")
    if (
        not isinstance(output, Iterable)
        or isinstance(output, (str, bytes, Mapping, Set))
        or getattr(output, "shape", None) == ()
    ):
        raise WrongReturn(f"judge: {name} gave {_shown(output)}. {expected}")
    values = list(output)
    if len(values) != len(prompts):
        raise WrongReturn(
            f"judge: {name} gave {len(values):,} scores for {len(prompts):,} answers: {_shown(output)}. {expected}"
        )
    scores: list[Score] = []
    for i, (value, prompt) in enumerate(zip(values, prompts, strict=True)):
        try:
            scores.append(_number(value))
        except (TypeError, ValueError, OverflowError):
            text = _shown(prompt.messages[-1].content)
            raise WrongReturn(
                f"judge: {name} gave answer {i + 1:,} of {len(prompts):,}, to the prompt {text} ({prompt.where}), "
                f"{_shown(value)}. Expected a finite number, or None for no score, of at most {LARGEST:g} either way."
            ) from None
    return scores


def none_at_all(names: Iterable[str], answers: int, whose: str = "") -> AlignError:
    """The error of answers none of which these judges gave a score, in every stage that asks them."""
    return AlignError(
        f"judge: {' and '.join(names)} gave none of {answers:,} answers{whose} a score: all are None. Look at the "
        "judge."
    )


def _number(value: object) -> Score:
    """Python's, NumPy's and torch's numbers, also in an array of one, as torch takes them; True is 1, and what NumPy
    masks is None. Raises: TypeError, ValueError or OverflowError for anything else."""
    if value is None:
        return None
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and all(length == 1 for length in shape):
        if getattr(value, "mask", False):
            return None
        value = value.item()  # type: ignore[attr-defined]
    if not isinstance(value, (Real, Decimal)):
        raise TypeError
    number = float(value)
    if not abs(number) <= LARGEST:
        raise ValueError
    return number


def _shown(value: object) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    return short.repr(value).replace("\n", " ")
