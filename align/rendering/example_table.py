"""Examples in an Arrow file, mapped into memory: none of them is a Python object before it is asked for."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from align.data.examples import Example
from align.data.views import View
from align.ground.json import Json

SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),
        ("counts", pa.list_(pa.uint8())),
        ("lengths", pa.list_(pa.int32())),
        ("shared", pa.int32()),
        ("margin", pa.float64()),
        ("label", pa.bool_()),
        ("labels", pa.list_(pa.uint8())),
        ("opening", pa.string()),
        ("note", pa.string()),
    ]
)
"""A row an example, its sequences one after the other; `note` of the last row, which is none, is what was counted."""
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""The end of an Arrow stream; what follows it in the file is not read."""


class Writer:
    """Writes examples part by part, as what a file consists of."""

    def opening(self) -> memoryview:
        return memoryview(SCHEMA.serialize())

    def part(self, examples: Sequence[Example]) -> memoryview:
        columns: dict[str, list[Any]] = {
            "ids": [e.sequences for e in examples],
            "counts": [e.supervised for e in examples],
            "lengths": [([len(s) for s in e.sequences],) for e in examples],
            "shared": [e.shared for e in examples],
            "margin": [e.margin for e in examples],
            "label": [e.label for e in examples],
            "labels": [(e.labels,) for e in examples],
            "opening": [e.opening for e in examples],
            "note": [None] * len(examples),
        }
        arrays = [_array(columns[field.name], field) for field in SCHEMA]
        return memoryview(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA).serialize())

    def ending(self, counts: Json) -> memoryview:
        note = {name: None for name in SCHEMA.names} | {"note": json.dumps(counts)}
        batch = pa.RecordBatch.from_pylist([note], schema=SCHEMA)
        return memoryview(bytes(batch.serialize()) + END)


def _array(values: list[Any], field: Any) -> Any:
    """A column; of lists of numbers, one behind the other in each of `values`, by way of one flat array."""
    if not pa.types.is_list(field.type):
        return pa.array(values, field.type)
    offsets = np.fromiter(accumulate((sum(map(len, some)) for some in values), initial=0), dtype=np.int32)
    dtype = field.type.value_type.to_pandas_dtype()
    numbers = chain.from_iterable(chain.from_iterable(values))
    flat = np.fromiter(numbers, dtype=dtype, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


class ExampleTable(View):
    """Examples of a file that `Writer` wrote. The file may be removed once this is made."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            *batches, last = pa.ipc.open_stream(source)
        self.counts: Json = json.loads(last.column("note")[0].as_py())
        self.parts = [_Part(batch) for batch in batches if batch.num_rows]
        self.starts = [0, *accumulate(part.size for part in self.parts)]

    def __len__(self) -> int:
        return self.starts[-1]

    def example(self, number: int) -> Example:
        part = bisect_right(self.starts, number) - 1
        return self.parts[part].example(number - self.starts[part])

    def __iter__(self) -> Iterator[Example]:
        return (part.example(i) for part in self.parts for i in range(part.size))


class _Part:
    """Examples of one batch."""

    def __init__(self, batch: Any) -> None:
        self.size: int = batch.num_rows
        self.batch = batch
        names = ("ids", "counts", "lengths", "labels")
        self.lists = {n: (batch.column(n).offsets.to_numpy(), batch.column(n).values.to_numpy()) for n in names}

    def _list(self, name: str, i: int) -> Any:
        offsets, values = self.lists[name]
        return values[offsets[i] : offsets[i + 1]]

    def example(self, i: int) -> Example:
        ids, counts = self._list("ids", i).tolist(), self._list("counts", i).view(np.bool_).tolist()
        edges = [0, *accumulate(self._list("lengths", i).tolist())]
        cuts = [slice(a, b) for a, b in pairwise(edges)]
        shared, margin, label, opening = (
            self.batch.column(name)[i].as_py() for name in ("shared", "margin", "label", "opening")
        )
        sequences, supervised = (tuple(some[cut] for cut in cuts) for some in (ids, counts))
        labels = tuple(map(bool, self._list("labels", i).tolist()))
        return Example(sequences, supervised, shared, margin=margin, label=label, labels=labels, opening=opening)
