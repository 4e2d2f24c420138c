"""Curves in a terminal, drawn with braille: each character is two points wide and four high (Unicode 2800-28FF)."""

from __future__ import annotations

from collections.abc import Sequence

from align.ground.progress import cells, cut
from align.report.sketch import told_apart
from align.watching.shown import Curve

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each point of a character, by row from the top and column."""
LABEL = 8
"""Columns of a number beside a curve."""


def plot(name: str, curve: Curve, last_step: int, width: int, height: int) -> list[str]:
    """A heading with the last value, and `height` lines of the curve from step 0 to `last_step`; every line has `width`
    columns."""
    value = number(curve[-1][1])
    heading = padded(name, width - len(value) - 1) + f" {value}"
    columns = 2 * (width - LABEL - 1)
    means = binned(curve, last_step, columns)
    known = [mean for mean in means if mean is not None]
    low, high = min(known), max(known)
    rows = drawn(means, low, high, height)
    labels = [""] * height
    labels[0], labels[-1] = (number(high), number(low)) if high > low else (number(high), "")
    if labels[0] == labels[-1]:
        labels[0], labels[-1] = (label[:LABEL] for label in told_apart(high, low, 4, LABEL))
    return [heading, *(f"{label:>{LABEL}} {row}" for label, row in zip(labels, rows, strict=True))]


def binned(curve: Curve, last_step: int, columns: int) -> list[float | None]:
    """The mean of the values that fall into each column; None where there is none."""
    sums, counts = [0.0] * columns, [0] * columns
    for step, value in curve:
        at = min(columns - 1, max(0, int(step / max(last_step, 1) * (columns - 1))))
        sums[at] += value
        counts[at] += 1
    return [total / count if count else None for total, count in zip(sums, counts, strict=True)]


def drawn(means: Sequence[float | None], low: float, high: float, height: int) -> list[str]:
    """The columns as `height` lines of braille, joined by upright strokes so that a curve is one line."""
    rows = 4 * height
    bits = [[0] * (len(means) // 2) for _ in range(height)]
    before: tuple[int, int] | None = None
    for x, mean in enumerate(means):
        if mean is None:
            continue
        y = round((rows - 1) * (1 - (mean - low) / (high - low))) if high > low else rows // 2
        points = [(x, y)]
        if before:
            points = joined(before, (x, y))
        for at, row in points:
            bits[row // 4][at // 2] |= DOTS[row % 4][at % 2]
        before = x, y
    return ["".join(chr(0x2800 + cell) for cell in line) for line in bits]


def joined(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The points from start to end, both included."""
    (x0, y0), (x1, y1) = start, end
    count = max(x1 - x0, abs(y1 - y0), 1)
    return [(x0 + round((x1 - x0) * i / count), y0 + round((y1 - y0) * i / count)) for i in range(count + 1)]


def number(value: float) -> str:
    """At most eight characters, four digits that count."""
    text = f"{value:.4g}"
    return text if len(text) <= LABEL else f"{value:.1e}"


def padded(text: str, width: int) -> str:
    """The text in exactly so many columns."""
    shown = cut(text, width)
    return shown + " " * (width - cells(shown))
