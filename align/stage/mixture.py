"""A data set of several files in a stage: what one pass takes of each, exact once it is known what is held out."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from align.data.collect import Records
from align.data.records import R
from align.data.split import at, openings
from align.data.tools import mixing
from align.ground.terminal import say
from align.inputs.fit import root
from align.recipe import named_files
from align.stage.workbench import Workbench
from align.store.artifact import is_digest
from align.store.remote.address import secrets, without


class Pass(NamedTuple):
    """One pass over a mixture."""

    sizes: list[int]
    """Records to train on in each file."""
    counts: list[int]
    """Records that are taken of each."""
    taken: list[int]
    """Their places among all records."""


def parts_of(bench: Workbench, name: str) -> list[str]:
    """The files of a mixture, as the question calls them."""
    return [part for part in bench.question.data if part != name and root(part) == name]


def file_told(bench: Workbench, part: str) -> str:
    """One of several files as messages may have it; what a stage of a recipe made, by its name."""
    file = named_files(bench.config)[part]
    return bench.store.label(file) if is_digest(file) else without(secrets(file), file)


def one_pass(bench: Workbench, given: Records[R], records: Sequence[R], rows: int | None = None) -> Pass:
    """What one pass takes of all that was `given`, where `records` are to be trained on: prompts are held out whole,
    and the same ones however files are mixed.

    Raises: InputError for shares that cannot be met, and for a limit that limits nothing.
    """
    kept = {*openings(records)}
    places = [i for i, opening in enumerate(openings(given)) if opening in kept]
    edges = [bisect_left(places, edge) for edge in accumulate(map(len, given.parts), initial=0)]
    sizes = [end - start for start, end in pairwise(edges)]
    files, draw = bench.config.data, random.Random(bench.config.seed)
    counts = mixing.counts_of(files, sizes, rows)
    drawn = [mixing.taken(file, size, n, draw) for file, size, n in zip(files, sizes, counts, strict=True)]
    return Pass(sizes, counts, [places[start + i] for start, of in zip(edges, drawn, strict=False) for i in of])


def mixed(bench: Workbench, given: Records[R], records: list[R], rows: int | None = None) -> list[R]:
    """The `records` to train on, of a mixture those that one pass takes (`rows`, if set), said and counted. Raises: as
    `one_pass`."""
    if not given.parts:
        return records
    sizes, counts, taken = one_pass(bench, given, records, rows)
    told = (
        f"{file_told(bench, part)} {n:,} of {size:,} ({n / len(taken):.2%} of the pass)"
        for part, size, n in zip(parts_of(bench, "data"), sizes, counts, strict=True)
    )
    say(f"{bench.title}: each pass takes {len(taken):,} records: {', '.join(told)}")
    bench.left_out |= {f"mixed/{part}": n for part, n in zip(parts_of(bench, "data"), counts, strict=True)}
    return at(given, taken)


def ahead(bench: Workbench, looked: Records[R] | None, train: list[R]) -> list[R]:
    """The records to train on, as far as they were looked at. Raises: InputError where all that the files of a mixture
    have cannot be mixed so."""
    if looked is None or not looked.parts:
        return train
    if looked.whole:
        return at(looked, one_pass(bench, looked, train).taken)
    at_most(bench, looked)
    return train


def at_most(bench: Workbench, looked: Records[R]) -> int:
    """Records of a pass over a mixture where none is held out. Raises: InputError where it cannot be mixed so."""
    return sum(mixing.counts_of(bench.config.data, [part.rows for part in looked.parts]))
