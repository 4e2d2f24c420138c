"""Skeletons: what a template writes around contents, rendered once for all dialogues of one shape that it treats alike.

What it does with the contents of one dialogue is traced. Where those of another one answer all that was asked in the
same way, the template would do the same with them: what it made of a content is made of theirs, and stands between the
same texts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from types import CodeType
from typing import NamedTuple

import jinja2

from align.ground.bounds import Unbounded
from align.rendering.templates.trace import OPEN, VALUE, Noted, Trace, Unnoted

Span = tuple[int, int]
"""Characters of a rendered text: the first, and the one after the last."""
Render = Callable[[jinja2.Template, Sequence[dict[str, object]]], tuple[str, list[Span]]]


class Skeleton(NamedTuple):
    """What is done with contents and stands around them, and spans of the whole, whose ends are (a text, characters
    into it)."""

    steps: list[tuple[Noted, bool | None]]
    """What is made, and what is asked with its answer."""
    texts: list[str]
    slots: list[int]
    """Which value stands behind each text but the last: contents are numbered first, then what is made."""
    marks: list[tuple[Span, Span]]

    def filled(self, contents: Sequence[str]) -> tuple[str, list[Span]] | None:
        """(the text with these contents, its spans); None where they answer otherwise."""
        values = [*contents]
        for (of, call, args), answer in self.steps:
            found = call(values[of], *args)
            if isinstance(found, str):
                values.append(found)
            elif found is not answer:
                return None
        parts, starts, at = [self.texts[0]], [0], len(self.texts[0])
        for slot, text in zip(self.slots, self.texts[1:], strict=True):
            parts += (values[slot], text)
            starts.append(at + len(values[slot]))
            at = starts[-1] + len(text)
        return "".join(parts), [(starts[a] + i, starts[b] + j) for (a, i), (b, j) in self.marks]


class Tracer:
    """A template that contents can be traced through."""

    def __init__(self, source: str, template: jinja2.Template) -> None:
        self.source, self.plain = source, template.environment

    @cached_property
    def _code(self) -> CodeType:
        if OPEN in self.source:
            raise Unnoted
        return Trace(()).environment(self.plain).compile(self.source)

    def skeleton(self, render: Render, roles: Sequence[str], contents: Sequence[str]) -> Skeleton | None:
        """What it does with these contents of messages by these; None where it refuses them, or does more than can be
        noted."""
        trace = Trace(contents)
        environment = trace.environment(self.plain)
        both = zip(roles, trace.contents, strict=True)
        messages: list[dict[str, object]] = [{"role": role, "content": content} for role, content in both]
        try:
            text, marks = render(jinja2.Template.from_code(environment, self._code, environment.globals), messages)
        except Unbounded:
            raise
        except (Exception, Unnoted):  # the dialogue itself is rendered then
            return None
        if any(text[a:b] != marked for (a, b), marked in zip(marks, trace.marked, strict=False)):
            return None  # counted in another text, such as a macro's
        steps = [(step, out if isinstance(out, bool) else None) for step, out in trace.steps.items()]
        return _cut(text, marks, steps)


def _cut(text: str, marks: Sequence[Span], steps: list[tuple[Noted, bool | None]]) -> Skeleton:
    """The skeleton of a text in which numbers stand for values."""
    parts = VALUE.split(text)
    sizes = [len(part) + (2 if n % 2 else 0) for n, part in enumerate(parts)]
    starts = [0, *accumulate(sizes)][:-1:2]

    def at(place: int) -> Span:
        n = bisect_right(starts, place) - 1
        return n, place - starts[n]

    return Skeleton(steps, parts[::2], [int(slot) for slot in parts[1::2]], [(at(a), at(b)) for a, b in marks])
