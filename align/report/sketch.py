"""Curves over each other in plain text: a letter for each, for terminals and pipes that know no colours."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from align.report.plots import drawable
from align.report.text import elided

HEIGHT = 7
"""Lines of the plane."""
LABEL = 9
"""Characters of the numbers beside it."""
SEVERAL = "+"
NOTHING = 1e-6
"""Of the height, what is 0 but for rounding."""

Points = Sequence[tuple[float, float]]


def sketch(title: str, curves: Mapping[str, Points], width: int) -> list[str]:
    """Curves by the letter that draws them, (step, value) in order of steps, as lines of `width` characters. Infinite
    points are left out."""
    finite = {letter: [point for point in points if drawable(*point)] for letter, points in curves.items()}
    steps = [step for points in finite.values() for step, _ in points]
    if not steps:
        return [elided(title, width), "no finite values"]
    across = width - LABEL - 2
    first, last = min(steps), max(steps)
    heights = {letter: heights_of(points, first, last, across) for letter, points in finite.items()}
    known = [height for row in heights.values() for several in row for height in several]
    low, high = min(known), max(known)
    plane = [[" "] * across for _ in range(HEIGHT)]
    for letter, row in heights.items():
        for column, several in enumerate(row):
            for line in {round((HEIGHT - 1) * (1 - (height - low) / ((high - low) or 1.0))) for height in several}:
                plane[line][column] = letter if plane[line][column] == " " else SEVERAL
    above, below = (end if abs(end) > NOTHING * (high - low) else 0.0 for end in (high, low))
    top, bottom = told_apart(above, below, 3, LABEL)
    labels = {0: top, HEIGHT - 1: bottom}
    lines = [f"{labels.get(i, ''):>{LABEL}} ┤{''.join(row)}" for i, row in enumerate(plane)]
    begin, end = f"{first:,.0f}", f"step {last:,.0f}"
    axis = f"{begin}{end:>{across - len(begin)}}" if last > first else begin
    return [elided(title, width), *lines, f"{'':{LABEL + 2}}{axis}"]


def told_apart(high: float, low: float, digits: int, most: int) -> tuple[str, str]:
    """Two ends of an axis as text: with so many digits that count, or as many as the axis needs, within `most`
    characters each."""
    for more in range(digits, most):
        found = f"{high:.{more}g}", f"{low:.{more}g}"
        off = max(abs(float(text) - end) for text, end in zip(found, (high, low), strict=True))
        if off <= (high - low) / 10 and max(map(len, found)) <= most:
            return found
    return f"{high:.{digits}g}", f"{low:.{digits}g}"


def heights_of(points: Points, first: float, last: float, columns: int) -> list[list[float]]:
    """How high a curve is in each of `columns` between two steps: the mean of its points there, or its two ends where
    these are there; where no point is, the line between its neighbours; nothing before the first and after the last of
    them."""
    if not points:
        return [[] for _ in range(columns)]
    size = (last - first) / columns or 1.0
    steps = [step for step, _ in points]
    found: list[list[float]] = []
    for column in range(columns):
        left, right = first + column * size, first + (column + 1) * size
        start = bisect_left(steps, left)
        end = len(steps) if column == columns - 1 else bisect_left(steps, right)
        inside = [value for _, value in points[start:end]]
        if inside:
            ends = [points[i][1] for i in {0, len(points) - 1} if start <= i < end]
            found.append(ends or [sum(inside) / len(inside)])
        elif 0 < start < len(points):
            (x0, y0), (x1, y1) = points[start - 1], points[start]
            found.append([y0 + (y1 - y0) * ((left + right) / 2 - x0) / (x1 - x0)])
        else:
            found.append([])
    return found
