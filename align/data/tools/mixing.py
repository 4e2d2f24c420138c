"""Mixing files: how many rows of each make up the shares that are asked for."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from align.ground.errors import InputError
from align.recipe.mixture import MixedFile


def counts_for(sizes: Mapping[str, int], weights: Mapping[str, float], rows: int | None) -> dict[str, int]:
    """Rows to take of each file: `rows` in all, or as many as there are without taking one twice; shares to the nearest
    row, by largest remainders.

    Raises: InputError for weights that are no shares, and where a file has too few rows for its share, or its share no
    row.
    """
    wrong = [name for name, weight in weights.items() if not (math.isfinite(weight) and weight > 0)]
    if wrong:
        raise InputError(f"{wrong[0]}: its weight is {weights[wrong[0]]}; expected a number above 0.")
    whole = sum(weights.values())
    shares = {name: weight / whole for name, weight in weights.items()}
    most = min(math.floor(sizes[name] / share + 1e-9) for name, share in shares.items())
    total = most if rows is None else rows
    counts = {name: math.floor(total * share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - total * shares[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    short = [name for name, n in counts.items() if n > sizes[name]]
    if short:
        raise InputError(
            f"{short[0]}: has {sizes[short[0]]:,} rows, but its share of {total:,} is {counts[short[0]]:,}. "
            f"At most {most:,} rows can be mixed so without taking one twice."
        )
    if nothing := [name for name, n in counts.items() if not n]:
        raise InputError(
            f"{nothing[0]}: its share, {shares[nothing[0]]:.2g} of {total:,} rows, is less than one row. Raise its "
            "weight, or leave it out."
        )
    return counts


def drawn(size: int, count: int, draw: random.Random) -> Sequence[int]:
    """Which rows of a file are taken, in the order of the file."""
    return sorted(draw.sample(range(size), count))


def counts_of(sources: Sequence[MixedFile], sizes: Sequence[int], rows: int | None = None) -> list[int]:
    """Records that one pass takes of each source of so many: of those without a weight `limit` times `epochs`; those
    with one make up their shares of the pass, by `counts_for`; where all have one, of `rows`.

    Raises: InputError for a limit that limits nothing, and for shares that cannot be met without taking a record twice.
    """
    counts: dict[str, int] = {}
    for source, size in zip(sources, sizes, strict=True):
        if not size:
            raise InputError(f"{source.told}: all its records are held out, so there is nothing of it to mix.")
        if source.limit is not None and source.limit >= size:
            raise InputError(
                f"{source.told}: limit is {source.limit:,}, but it has {size:,} records to train on, so it has no "
                "effect. Lower it, or leave it out."
            )
        if source.weight is None:
            counts[source.file] = max(1, round((source.limit or size) * (source.epochs or 1)))
    weights = {source.file: source.weight for source in sources if source.weight is not None}
    if weights:
        share = sum(weights.values())
        room = {source.file: size for source, size in zip(sources, sizes, strict=True) if source.file in weights}
        if others := sum(counts.values()):
            rows = round(others * share / (1 - share))
            _check_room(weights, {file: round(rows * weight / share) for file, weight in weights.items()}, room, others)
        counts |= counts_for(room, weights, rows)
    return [counts[source.file] for source in sources]


def _check_room(weights: Mapping[str, float], needs: Mapping[str, int], room: Mapping[str, int], others: int) -> None:
    """Files can give what their weights beside `others` records come to. Raises: InputError."""
    for file, need in needs.items():
        beside = f"{file}: its weight {weights[file]:g} beside {others:,} records of the others comes to"
        if not need:
            raise InputError(f"{beside} no record. Raise the weight, or leave the file out.")
        if need > room[file]:
            raise InputError(
                f"{beside} {need:,} records, and it has {room[file]:,} to train on. Lower the weight, or limit the "
                "others."
            )


def taken(source: MixedFile, size: int, count: int, draw: random.Random) -> list[int]:
    """Which of a file's records make up `count`: of those that its limit draws, each as often as any other, or once
    more."""
    pool = drawn(size, source.limit, draw) if source.limit else range(size)
    times, more = divmod(count, len(pool))
    return [*pool] * times + [pool[i] for i in drawn(len(pool), more, draw)]
