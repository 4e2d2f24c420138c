"""Which tokens of a rendered text count, and which two texts share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from align.data.counts import Counts
from align.ground.errors import InputError
from align.rendering.tokens import Tokens
from align.rendering.turns import Rendered


def mask(
    row: Rendered, tokens: Tokens, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int], where: str, counts: Counts
) -> tuple[list[int], list[bool]]:
    """(ids, whether each counts), cut after the last token that counts: those that share a character with a span of an
    answer; of an answer in steps those alone in which a step ends, of the last one its end of turn.

    Raises: InputError for an answer without tokens or without an end-of-turn token.
    """
    ids = tokens.ids
    found = [False] * len(ids)
    last = 0
    for start, end in row.spans:
        first, last = tokens.covering(start, end)
        if first >= last or ids[last - 1] not in stops:
            what = repr(tokenizer.convert_ids_to_tokens(ids[last - 1])) if first < last else "none at all"
            raise InputError(
                f"{where}: the last token that counts of {row.text[start:end][-40:]!r} is {what}, not an end-of-turn "
                f"token ({', '.join(map(repr, tokenizer.convert_ids_to_tokens(list(stops))))}); the model would never "
                "learn to stop. Give a chat template that ends an answer with one (chat_template: FILE)."
            )
        counts.tokens_across_prompt_end += tokens.span(first)[0] < start
        found[first:last] = [True] * (last - first)
    return ids[:last], at_steps(row, tokens, last, where) if row.steps else found[:last]


def at_steps(row: Rendered, tokens: Tokens, length: int, where: str) -> list[bool]:
    """Which of the first tokens end a step. Raises: InputError where two do so in one token."""
    ends = [tokens.covering(end - 1, end)[1] - 1 for end in row.steps[:-1]] + [length - 1]
    if twice := next((i for i, (one, other) in enumerate(pairwise(ends), 1) if one >= other), None):
        raise InputError(
            f"{where}: steps {twice} and {twice + 1} end in one token, so they cannot be told apart. Join them in the "
            "row, or set another step_separator."
        )
    return [i in {*ends} for i in range(length)]


def step_ends(row: Rendered, content: str, ends: Sequence[int], where: str) -> Rendered:
    """The text with where the steps of its one answer end, of whose `content` these are the ends. Raises: InputError
    where the content is written in another way."""
    said = content.strip()  # templates cut what is around it
    start = row.text.find(said, row.spans[0][0])
    if start < 0:
        raise InputError(
            f"{where}: the chat template writes the answer in another way, so where its steps end cannot be found. "
            "Give a template that writes it as it is (chat_template: FILE)."
        )
    start -= len(content) - len(content.lstrip())
    return replace(row, steps=[start + end for end in ends])


def ended(
    row: tuple[list[int], list[bool]], cut: bool, stops: Sequence[int], where: str, counts: Counts
) -> tuple[list[int], list[bool]]:
    """An answer (ids, which count), without its end of turn where it was cut off before. Raises: InputError where
    nothing is left that counts."""
    ids, found = row
    if cut and ids[-1] in stops:
        ids, found = ids[:-1], found[:-1]
        counts.missing_end += 1
    if not any(found):
        raise InputError(f"{where}: the completion has no token that counts; remove the row, or give it text.")
    return ids, found


def common_prefix(*rows: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    n = 0
    for column in zip(*rows, strict=False):
        if any(x != column[0] for x in column):
            break
        n += 1
    return n
