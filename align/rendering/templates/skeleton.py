"""Skeletons: what a template writes around contents that it only copies, rendered once for all dialogues of one shape.

A template that does nothing with a content but write it, alone or added to other text, and ask whether it is there,
writes the same around any contents. That it does no more is shown, not guessed: its syntax may only hold what is listed
here, and the contents that it is tried with are no texts but objects which refuse all else.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Never

from jinja2 import nodes

Span = tuple[int, int]
"""Characters of a rendered text: the first, and the one after the last."""
Render = Callable[[list[Any]], tuple[str, list[Span]]]
OPEN, CLOSE = chr(0xFDD0), chr(0xFDD1)
"""Around the number of a content; Unicode keeps them free of characters."""

ALLOWED = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.Getattr, nodes.Getitem),
    *(nodes.If, nodes.For, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Add, nodes.Sub),
    *(nodes.Assign, nodes.NSRef, nodes.Slice, nodes.Keyword, nodes.CondExpr, nodes.List, nodes.Tuple),
    *(nodes.ExtensionAttribute, nodes.CallBlock),
)
"""Syntax by which a content can be copied or asked for; all else could read a text made of one."""
TESTS = {"defined", "undefined", "none"}
CALLS = {"raise_exception", "namespace"}
FILTERS = {"tojson"}
"""Of which a content refuses to be one."""


class NotCopied(Exception):
    """A template did something else with a content than to copy it."""


class Opaque:
    """A content, or a sum of texts and contents: to be written and added to, and there. Nothing else."""

    def __init__(self, written: str) -> None:
        self._written = written

    def __add__(self, other: object) -> Opaque:
        return Opaque(self._written + str(other)) if isinstance(other, str | Opaque) else _refuse()

    def __radd__(self, other: object) -> Opaque:
        return Opaque(str(other) + self._written) if isinstance(other, str) else _refuse()

    def __str__(self) -> str:
        return self._written

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Never:
        _refuse()

    def _refuse(self, *_: object) -> Never:
        raise NotCopied

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __getitem__ = _refuse
    __iter__ = __len__ = __hash__ = __repr__ = __format__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _refuse


def _refuse() -> Never:
    raise NotCopied


def only_copies(template: nodes.Template) -> bool:
    """Whether a template's syntax is such that a content is copied or refuses."""
    return all(_is_allowed(node) for node in template.find_all(nodes.Node))


def _is_allowed(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Filter | nodes.Test):
        return node.name in (FILTERS if isinstance(node, nodes.Filter) else TESTS)
    if isinstance(node, nodes.Call):
        called = node.node
        return isinstance(called, nodes.ExtensionAttribute) or (isinstance(called, nodes.Name) and called.name in CALLS)
    return isinstance(node, ALLOWED)


class Skeleton(NamedTuple):
    """What stands around contents, and spans of the whole, whose ends are (a text, characters into it)."""

    texts: list[str]
    slots: list[int]
    """Which content stands behind each text but the last."""
    marks: list[tuple[Span, Span]]

    def filled(self, contents: Sequence[str]) -> tuple[str, list[Span]]:
        """(the text with these contents, its spans)."""
        parts, starts, at = [self.texts[0]], [0], len(self.texts[0])
        for slot, text in zip(self.slots, self.texts[1:], strict=True):
            parts += (contents[slot], text)
            starts.append(at + len(contents[slot]))
            at = starts[-1] + len(text)
        return "".join(parts), [(starts[a] + i, starts[b] + j) for (a, i), (b, j) in self.marks]


def skeleton(render: Render, roles: Sequence[str]) -> Skeleton | None:
    """What a template writes around the contents of messages by these; None where it does more with one, or refuses
    them."""
    messages = [{"role": role, "content": Opaque(f"{OPEN}{n}{CLOSE}")} for n, role in enumerate(roles)]
    try:
        text, marks = render(messages)
    except Exception:  # `NotCopied`, or the template's own: the dialogue itself is rendered then
        return None
    parts = re.split(f"{OPEN}(\\d+){CLOSE}", text)
    texts, slots = parts[::2], [int(slot) for slot in parts[1::2]]
    sizes = [len(part) + (2 if n % 2 else 0) for n, part in enumerate(parts)]
    starts = [0, *accumulate(sizes)][:-1:2]

    def at(place: int) -> Span:
        n = bisect_right(starts, place) - 1
        return n, place - starts[n]

    ends = [(at(a), at(b)) for a, b in marks]
    if any(i > len(texts[n]) for pair in ends for n, i in pair):
        return None  # within a content
    return Skeleton(texts, slots, ends)
