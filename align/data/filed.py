"""A list whose items lie in a file of this process's own, once there are many of them."""

from __future__ import annotations

import os
import pickle
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import SupportsIndex, TypeVar, overload

T = TypeVar("T")
HELD = 100_000
"""Items that are held in memory; of more, none but those of one block."""
BLOCK = 1000


class Spool:
    """Bytes in a file of this process's own, which has no name: nobody else can write to it, and it is gone with the
    process."""

    def __init__(self) -> None:
        self.file, name = tempfile.mkstemp(prefix="align-")
        os.unlink(name)
        weakref.finalize(self, os.close, self.file)
        self.edges = array("q", [0])
        """Where each piece begins, and the last one ends."""

    def append(self, content: bytes) -> None:
        """One more piece."""
        written = 0
        while written < len(content):
            written += os.pwrite(self.file, content[written:], self.edges[-1] + written)
        self.edges.append(self.edges[-1] + written)

    def __getitem__(self, number: int) -> bytes:
        start, end = self.edges[number : number + 2]
        return os.pread(self.file, end - start, start)


class OnDisk(Sequence[T]):
    """Items in blocks of a `Spool`. `mark` is a number of an item that is asked for often: taken while the item is at
    hand, and held in memory."""

    def __init__(self, mark: Callable[[T], int] | None = None) -> None:
        self.blocks = Spool()
        self.mark = mark
        self.marks = array("Q")
        self.full = 0
        self.last: list[T] = []
        """The items that are in no block yet."""
        self.open: tuple[int, list[T]] = (-1, [])
        """The block that was read last."""

    def append(self, item: T) -> None:
        self.last.append(item)
        if self.mark:
            self.marks.append(self.mark(item))
        if len(self.last) == BLOCK:
            self.blocks.append(pickle.dumps(self.last, 5))
            self.full += 1
            self.last = []

    def block(self, number: int) -> list[T]:
        if number == self.full:
            return self.last
        if self.open[0] != number:
            self.open = number, pickle.loads(self.blocks[number])
        return self.open[1]

    def __len__(self) -> int:
        return self.full * BLOCK + len(self.last)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        return self.block(at // BLOCK)[at % BLOCK]


class FiledList(list[T]):
    """A list that is only appended to. Beyond `HELD` items they move to a file, from which each is made anew when it is
    asked for; what is picked of them refers to them there."""

    _file: OnDisk[T] | None = None
    _places: Sequence[int] = ()
    """Which items of the file these are."""
    _mark: Callable[[T], int] | None = None
    """As of `OnDisk`."""

    @property
    def is_filed(self) -> bool:
        return self._file is not None

    @property
    def marks(self) -> array[int] | None:
        """`mark` of each item, where the list is filed and has one."""
        if self._file is None or self._file.mark is None:
            return None
        return array("Q", map(self._file.marks.__getitem__, self._places))

    def append(self, item: T) -> None:
        if self._file is not None:
            self._file.append(item)
            self._places = range(len(self._file))
            return
        super().append(item)
        if len(self) > HELD:
            file = OnDisk(self._mark)
            for held in super().__iter__():
                file.append(held)
            self.clear()
            self._file, self._places = file, range(len(file))

    def pick(self, places: Iterable[int]) -> FiledList[T]:
        """The items at these places of a list that is filed."""
        out: FiledList[T] = FiledList()
        out._file, out._places = self._file, array("q", (self._places[i] for i in places))
        return out

    def __len__(self) -> int:
        return super().__len__() if self._file is None else len(self._places)

    def __iter__(self) -> Iterator[T]:
        if self._file is None:
            return super().__iter__()
        file = self._file
        return (file[i] for i in self._places)

    @overload
    def __getitem__(self, at: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: SupportsIndex | slice) -> T | list[T]:
        if self._file is None:
            return super().__getitem__(at)
        file = self._file
        if isinstance(at, slice):
            return [file[i] for i in self._places[at]]
        return file[self._places[at.__index__()]]

    def __eq__(self, other: object) -> bool:
        if self._file is None:
            return super().__eq__(other)
        return (
            isinstance(other, list)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None
