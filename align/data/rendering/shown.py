"""What a model reads of a row, as text for a terminal: its tokens decoded, «…» around those that count."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from align.data.examples import Example
from align.ground.terminal import one_line

WIDTH, LINES = 100, 6
OPEN, CLOSE = "«", "»"
ESCAPED = {ord(OPEN): "\\u00ab", ord(CLOSE): "\\u00bb"}
"""How a row's own guillemets are shown."""


def marked(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], counts: Sequence[bool]) -> str:
    """The text of `ids`, special tokens as they are called, with marks around what counts."""
    out, before = "", ""
    at = 0
    for counted, run in groupby(counts):
        at += len(list(run))
        text = str(tokenizer.decode(list(ids[:at]), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        # of the whole so far: a piece alone may lose its first blank
        piece, before = text[len(before) :].translate(ESCAPED), text
        out += f"{OPEN}{piece}{CLOSE}" if counted else piece
    return out


def example_as_text(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[str]:
    """Each sequence of an example, marked: of a pair chosen, then rejected."""
    return [marked(tokenizer, ids, counts) for ids, counts in zip(example.sequences, example.supervised, strict=True)]


def block(title: str, text: str, lines: int = LINES, indent: str = "") -> list[str]:
    """A text behind a title, on at most so many lines of `WIDTH` columns: breaks and what a terminal would obey are
    escaped, and of one that is too long the middle is left out."""
    body = WIDTH - len(indent) - 2
    first = body - len(title)
    shown, room = one_line(text), first + (lines - 1) * body
    if len(shown) > room:
        shown = f"{shown[: room // 3]} … {shown[-(room - room // 3 - 3) :]}"
    rest = (shown[at : at + body] for at in range(first, len(shown), body))
    return [f"{indent}{title}: {shown[:first]}", *(f"{indent}  {part}" for part in rest)]
