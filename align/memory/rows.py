"""How long the rows of a data file are: the first and the last of them, in tokens of the base's tokenizer. No torch, no
template."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Protocol

from tokenizers import Tokenizer

from align.data.records import Conversation, Labelled, Messages, Preference, Prompt, Ranking, Stepwise

AROUND_MESSAGE, AROUND_DIALOGUE = 5, 20
"""Tokens that a template puts around a message, and at the start of a dialogue (ChatML's, with Qwen's own system
message)."""


class ReadRows(Protocol):
    """Records that were read of a data file: `align.data.collect.Records`."""

    @property
    def whole(self) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[object]: ...


@dataclass(frozen=True)
class Rows:
    """Lengths of the records of a data file, in tokens."""

    count: int | None
    """How many there are, where all of them were read."""
    sequence: int
    """Longest sequence."""
    record: int
    """Longest record in a packed row, its prompt once."""
    mean: float
    """Of a record in a packed row."""
    deviation: float
    seen: float
    """Length of the sequence that a token is in, on average over tokens."""

    def of(self, records: int) -> int:
        """Tokens of so many records together, above the mean by twice the standard deviation of the sum; of few rows
        that are known, drawn without putting back, that is less."""
        left = (self.count - records) / (self.count - 1) if self.count and 1 < self.count >= records else 1.0
        return round(records * self.mean + 2 * self.deviation * (left * records) ** 0.5)


def whole(record: Conversation | Prompt) -> list[Messages]:
    """The one part of a dialogue, or of a prompt."""
    return [record.messages]


def preference(record: Preference | Ranking | Stepwise) -> list[Messages]:
    """A prompt, and the answers that may follow it."""
    if isinstance(record, Stepwise):
        return [record.prompt, record.completion]
    return [record.prompt, *record.answers.values()]


def labelled(record: Labelled) -> list[Messages]:
    """A prompt, and the answer that follows it."""
    return [record.prompt, record.completion]


class Measured:
    """Rows that were measured: of stages that read the same ones alike, once."""

    def __init__(self) -> None:
        self.found: dict[tuple[object, ...], tuple[ReadRows, Rows]] = {}
        """With the records, so that no others take their place in memory."""

    def of(self, parts: Callable[..., list[Messages]], records: ReadRows, tokenizer: bytes, opening: int) -> Rows:
        """`rows_of`."""
        asked = (id(records), parts, tokenizer, opening)
        if asked not in self.found:
            self.found[asked] = records, rows_of(parts, records, tokenizer, opening)
        return self.found[asked][1]


def rows_of(
    parts: Callable[..., list[Messages]], records: ReadRows, tokenizer: bytes, opening: int = AROUND_DIALOGUE
) -> Rows:
    """The rows of a stage's data, of which both ends were read; `parts` of a record: a prompt and what may follow it,
    or one whole. `opening`: tokens before a dialogue."""
    tokens = Tokenizer.from_str(tokenizer.decode())
    lengths = [[_length(tokens, part) for part in parts(record)] for record in records]
    packed = [opening + sum(record) for record in lengths]
    sequences = [opening + record[0] + answer for record in lengths for answer in record[1:] or [0]]
    seen = sum(n * n for n in sequences) / sum(sequences)
    return Rows(
        len(records) if records.whole else None, max(sequences), max(packed), fmean(packed), pstdev(packed), seen
    )


def _length(tokens: Tokenizer, messages: Messages) -> int:
    return sum(
        AROUND_MESSAGE + len(tokens.encode(message.content, add_special_tokens=False).ids) for message in messages
    )
