"""Small SVG pictures for the HTML report: inline, coloured by the page's style sheet, no script, no external file.

Pictures inside table cells use percentages across and pixels down, so that they fill their cell at any width; a curve
has a view box.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from align.report.summary import Estimate, number

ROW = 34
"""Height in pixels of a picture in a table row; rows touch, so that vertical guides run through all of them."""
WIDTH, HEIGHT = 340, 170
"""Of a curve's view box."""
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 22
"""Room around its plane."""
COLOURS = 8
"""Of the style sheet."""
LARGEST, SMALLEST = 1e100, 1e-80
"""Of what is drawn: sums and differences of such numbers are numbers, and what lies closer together is one height."""


def axis(estimates: Iterable[Estimate], end: float = 0.0) -> tuple[float, float]:
    """The ends of an axis that holds 0, where bars start, `end`, and all of the estimates with their intervals."""
    at = [at for e in estimates for at in (e.value, *(e.interval or ())) if drawable(at)]
    low, high = min([0.0, *at]), max([end, *at])
    return low, high if high > low else low + 1.0


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * min(1.0, max(0.0, (value - low) / ((high - low) or 1.0))):.2f}%"


def _guide(x: str, kind: str) -> str:
    return f'<line class="{kind}" x1="{x}" x2="{x}" y1="0" y2="{ROW}"/>'


def _whisker(estimate: Estimate, low: float, high: float) -> str:
    if not estimate.interval or not drawable(*estimate.interval):
        return ""
    left, right = (_percent(end, low, high) for end in estimate.interval)
    caps = "".join(f'<line x1="{x}" x2="{x}" y1="{ROW / 2 - 4}" y2="{ROW / 2 + 4}"/>' for x in (left, right))
    return f'<g class="whisker"><line x1="{left}" x2="{right}" y1="{ROW / 2}" y2="{ROW / 2}"/>{caps}</g>'


def bar(estimate: Estimate | None, low: float, high: float, guide: float | None = None) -> Markup:
    """A bar from 0, where a line stands if it is not the left end, to the value with its interval; `guide` marks the
    reference's value in every row."""
    parts = [_guide(_percent(0.0, low, high), "grid")] if low < 0 else []
    parts += [_guide(_percent(guide, low, high), "guide")] if guide is not None else []
    if estimate:
        start, end = sorted((0.0, estimate.value))
        at, width = _percent(start, low, high), _percent(end - start, 0.0, high - low)
        parts += [f'<rect class="bar" x="{at}" y="8" width="{width}" height="{ROW - 16}" rx="2"/>']
        parts += [_whisker(estimate, low, high)]
    return Markup(f'<svg class="cell" height="{ROW}" aria-hidden="true">{"".join(parts)}</svg>')


def dot(estimate: Estimate | None, low: float, high: float, middle: float) -> Markup:
    """A dot with its interval beside the line of no difference at `middle`."""
    parts = [_guide(_percent(middle, low, high), "guide")]
    if estimate:
        parts += [
            _whisker(estimate, low, high),
            f'<circle class="dot" cx="{_percent(estimate.value, low, high)}" cy="{ROW / 2}" r="5.5"/>',
        ]
    return Markup(f'<svg class="cell" height="{ROW}" aria-hidden="true">{"".join(parts)}</svg>')


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high]: the first is <= low, the last is >=
    high."""
    largest = max(abs(low), abs(high))
    if high - low <= 1e-12 * max(largest, SMALLEST):
        low, high = (low - largest / 2, high + largest / 2) if largest > SMALLEST else (0.0, 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def drawable(*values: float) -> bool:
    """Whether there is room to reckon with these numbers: neither infinite nor nearly so."""
    return all(abs(value) <= LARGEST for value in values)


def tick_label(value: float, step: float) -> str:
    """A tick with as many decimals as its step needs; exponents only for very small and very large steps."""
    if step < 1e-4 or step >= 1e6:
        digits = 1 + math.ceil(math.log10(max(abs(value), step) / step) - 1e-9)  # by which neighbours differ
        return f"{value:.{min(max(digits, 3), 12)}g}"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def thin(points: Sequence[tuple[float, float]], buckets: int = 50) -> list[tuple[float, float, float, float]]:
    """(step, mean, lowest, highest) of at most `buckets` runs of neighbouring points; few points stay as they are."""
    size = math.ceil(len(points) / buckets) if len(points) > 1.5 * buckets else 1
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    found = []
    for run in runs:
        steps, values = zip(*run, strict=True)
        found.append((sum(steps) / len(run), sum(values) / len(run), min(values), max(values)))
    return found


def curve(
    points: Sequence[tuple[float, float]], held_out: Sequence[tuple[float, float]] = (), title: str = ""
) -> Markup:
    """One metric over steps as a line before the range of what was averaged; its held-out twin as dots. Infinite points
    are left out. Of one step it is said which, as the value stands above."""
    finite = [point for point in points if drawable(*point)]
    dots = [point for point in held_out if drawable(*point)]
    if not finite and not dots:
        return Markup('<p class="muted">no finite values</p>')
    xs, ys = [x for x, _ in finite + dots], [y for _, y in finite + dots]
    if len({*xs}) == 1:
        beside = f"; held out {number(dots[-1][1])}" if finite and dots else ""
        return Markup(f'<p class="muted">at step {xs[0]:,.0f}{beside}</p>')
    first, last = min(xs), max(max(xs), min(xs) + abs(min(xs)) / 1e9)
    axes = _Axes(first, last, ticks(min(ys), max(ys)))
    parts = axes.drawn(f"{first:,.0f}", f"step {last:,.0f}")
    runs = thin(finite)
    if len(runs) < len(finite):
        outline = [*((x, most) for x, _, _, most in runs), *((x, least) for x, _, least, _ in reversed(runs))]
        parts += [f'<polygon class="range" points="{axes.path(outline)}"/>']
    if len(runs) > 1:
        parts += [f'<polyline class="line" points="{axes.path((x, mean) for x, mean, _, _ in runs)}"/>']
    parts += [axes.point(x, y) for x, y in (dots if len(runs) > 1 else [*finite, *dots])]
    shown = sorted([*((x, y, "") for x, y, _, _ in runs), *((x, y, ", held out") for x, y in dots)])
    parts += axes.hovered([(x, f"step {x:,.0f}: {number(y)}{what}") for x, y, what in shown])
    return _picture(parts, f"{title}: from {number(shown[0][1])} to {number(shown[-1][1])}")


def colour(place: int) -> str:
    """The style sheet's name of a run's colour; the first, grey, is the last to be taken."""
    return f"--c{(place + 1) % COLOURS}"


def dash(place: int) -> int:
    """Pixels of a run's dashes, 0 for a line in one piece: a colour that comes again is dashed, longer each time."""
    return 2 + 2 * (place // COLOURS) if place >= COLOURS else 0


def overlaid(curves: Mapping[int, Sequence[tuple[float, float]]], title: str) -> Markup:
    """One metric of several runs over steps, a line each, in the colour of the run's place; colours that come again are
    dashed. Infinite points are left out."""
    finite = {place: [point for point in points if drawable(*point)] for place, points in curves.items()}
    points = [point for line in finite.values() for point in line]
    if not points:
        return Markup('<p class="muted">no finite values</p>')
    xs, ys = [x for x, _ in points], [y for _, y in points]
    first, last = min(xs), max(max(xs), min(xs) + max(1.0, abs(min(xs)) / 1e9))
    axes = _Axes(first, last, ticks(min(ys), max(ys)))
    parts = axes.drawn(f"{first:,.0f}", f"step {last:,.0f}") if len({*xs}) > 1 else axes.drawn(f"step {first:,.0f}", "")
    for place, line in finite.items():
        runs = thin(line)
        dashes = f' stroke-dasharray="{dash(place)} 3"' if dash(place) else ""
        drawn = f'<polyline class="line"{dashes} points="{axes.path((x, mean) for x, mean, _, _ in runs)}"/>'
        single = "".join(axes.point(x, y) for x, y in line) if len(runs) == 1 else ""
        parts.append(f'<g style="--colour: var({colour(place)})">{drawn}{single}</g>')
    return _picture(parts, title)


def against_kl(points: Sequence[tuple[float, float]], furthest: float, title: str = "") -> Markup:
    """A reward over sqrt(KL) from the reference, as the run went; the larger dot is where it ended. The axis goes from
    0 to `furthest`, so that pictures of several rewards stand above each other."""
    finite = [point for point in points if drawable(*point, furthest)]
    if not finite:
        return Markup('<p class="muted">no finite values</p>')
    if len(finite) == 1:
        return Markup(f'<p class="muted">at √KL {number(finite[0][0])}</p>')
    ys = [y for _, y in finite]
    axes = _Axes(0.0, furthest or 1.0, ticks(min(ys), max(ys)))
    parts = axes.drawn("0", f"√KL {furthest or 1.0:.2g}")
    parts += [f'<polyline class="line" points="{axes.path(finite)}"/>', *(axes.point(x, y) for x, y in finite[:-1])]
    hovered = axes.hovered(sorted((x, f"√KL {number(x)}: {number(y)}") for x, y in finite))
    return _picture(
        [*parts, axes.point(*finite[-1], radius=5.5), *hovered], f"{title}: {number(finite[-1][1])} at the end"
    )


@dataclass(frozen=True)
class _Axes:
    """A plane of `first` to `last` across and the ticks `up`, in pixels."""

    first: float
    last: float
    up: Sequence[float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)
        high = HEIGHT - BOTTOM - (y - self.up[0]) / (self.up[-1] - self.up[0]) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(high, 1)

    def path(self, along: Iterable[tuple[float, float]]) -> str:
        return " ".join("{},{}".format(*self.at(x, y)) for x, y in along)

    def point(self, x: float, y: float, radius: float = 3.2) -> str:
        cx, cy = self.at(x, y)
        return f'<circle class="point" cx="{cx}" cy="{cy}" r="{radius}"/>'

    def hovered(self, texts: Sequence[tuple[float, str]]) -> list[str]:
        """(x, text) in order of x as bands from half way to half way, which browsers tell the text of under the
        pointer."""
        at = [self.at(x, self.up[0])[0] for x, _ in texts]
        ends = [LEFT, *((left + right) / 2 for left, right in pairwise(at)), WIDTH - RIGHT]
        return [
            f'<rect class="hover" x="{left:.1f}" y="{TOP}" width="{max(right - left, 0):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{escape(text)}</title></rect>'
            for (left, right), (_, text) in zip(pairwise(ends), texts, strict=True)
        ]

    def drawn(self, left: str, right: str) -> list[str]:
        """A line per tick, and what stands at the two ends of the axis across."""
        parts = []
        for y in self.up:
            _, pixel = self.at(self.first, y)
            label = tick_label(y, self.up[1] - self.up[0])
            parts += [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{pixel}" y2="{pixel}"/>']
            parts += [f'<text class="tick" x="{LEFT - 6}" y="{pixel}" dy="3.5" text-anchor="end">{label}</text>']
        parts += [f'<text class="tick" x="{LEFT}" y="{HEIGHT - 5}">{left}</text>']
        return [*parts, f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{right}</text>']


def _picture(parts: Iterable[str], title: str) -> Markup:
    return Markup(
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
