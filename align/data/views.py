"""Examples as they lie elsewhere: some of them, and with more columns, each made anew when it is asked for, so that of
a table none stays in memory."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, overload

from align.data.examples import Example

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray


class View(Sequence[Example]):
    """Examples by their number."""

    @abstractmethod
    def example(self, number: int) -> Example: ...

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        if isinstance(at, slice):
            return [self.example(i) for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return self.example(at % len(self))

    def __iter__(self) -> Iterator[Example]:
        return map(self.example, range(len(self)))


class Picked(View):
    """The examples at some places."""

    def __init__(self, examples: Sequence[Example], places: Sequence[int]) -> None:
        self.examples, self.places = examples, places

    def __len__(self) -> int:
        return len(self.places)

    def example(self, number: int) -> Example:
        return self.examples[self.places[number]]


class WithColumn(View):
    """The examples, those at some places with one more column: `values` has a number per position of each of their
    branches, one after the other; an array of fp32."""

    def __init__(self, examples: Sequence[Example], places: Sequence[int], name: str, values: NDArray[float32]) -> None:
        self.examples, self.name, self.values = examples, name, values
        self.filled = {place: i for i, place in enumerate(places)} if len(places) < len(examples) else None
        self.starts = array("q", [0])
        """Where the values of each filled example begin, and those of the last end."""
        for place in places:
            example = examples[place]
            self.starts.append(self.starts[-1] + sum(len(sequence) - example.prefix for sequence in example.sequences))
        if self.starts[-1] != len(values):
            raise ValueError(f"{len(values)} values for {self.starts[-1]} positions")

    def __len__(self) -> int:
        return len(self.examples)

    def example(self, number: int) -> Example:
        example = self.examples[number]
        i = number if self.filled is None else self.filled.get(number)
        if i is None:
            return example
        at, rows = self.starts[i], []
        for sequence in example.sequences:
            rows.append(self.values[at : (at := at + len(sequence) - example.prefix)])
        return replace(example, columns={**example.columns, self.name: tuple(rows)})
