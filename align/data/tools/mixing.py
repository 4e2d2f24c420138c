"""Mixing files: how many rows of each make up the shares that are asked for."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from align.ground.errors import InputError


def counts_for(sizes: Mapping[str, int], weights: Mapping[str, float], rows: int | None) -> dict[str, int]:
    """Rows to take of each file: `rows` in all, or as many as there are without taking one twice; shares to the nearest
    row, by largest remainders.

    Raises: InputError for weights that are no shares, and where a file has too few rows.
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
    return counts


def drawn(size: int, count: int, draw: random.Random) -> Sequence[int]:
    """Which rows of a file are taken, in the order of the file."""
    return sorted(draw.sample(range(size), count))
