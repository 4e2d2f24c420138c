"""What a template does with the contents of a dialogue, written down while it does it.

In place of contents it gets objects. They note what is made of them (a trimmed content, what stands before `</think>`)
and what is asked of them (whether one holds `</think>`), and answer as the contents do. That a template does no more is
not guessed: the objects refuse all else, and turn into text only where the template writes them.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, Never

from jinja2 import Environment, pass_eval_context
from jinja2.filters import do_trim
from jinja2.nodes import EvalContext
from jinja2.tests import test_iterable, test_sequence, test_string

OPEN, CLOSE = chr(0xFDD0), chr(0xFDD1)
"""Around the number of a value where it is written; Unicode keeps them free of characters."""
VALUE = re.compile(f"{OPEN}(\\d+){CLOSE}")


class Unnoted(BaseException):
    """A template did with a content what cannot be noted. No `Exception`, which a filter or test may take for an
    answer."""


class Opaque:
    """A text in which contents stand, to be added to and written; nothing else."""

    def __init__(self, written: str) -> None:
        self._written = written

    def __add__(self, other: object) -> Opaque:
        return Opaque(self._written + _bare(other))

    def __radd__(self, other: object) -> Opaque:
        return Opaque(_bare(other) + self._written)

    def __getattr__(self, name: str) -> Never:
        _refuse()


def _refuse(*_: object) -> Never:
    raise Unnoted


REFUSED = "eq ne lt le gt ge bool hash contains getitem iter len str repr format mul rmul mod rmod int float index"
for name in REFUSED.split():
    setattr(Opaque, f"__{name}__", _refuse)


def _bare(value: object) -> str:
    """What is written of it. Raises: Unnoted for what is no text, or could be taken for a value."""
    if isinstance(value, Opaque):
        return value._written
    return value if isinstance(value, str) and OPEN not in value else _refuse()


class Content(Opaque):
    """A content, or a text that was made of one."""

    def __init__(self, trace: Trace, number: int) -> None:
        super().__init__(f"{OPEN}{number}{CLOSE}")
        self._make, self._ask = partial(trace.make, number), partial(trace.ask, number)

    def strip(self, *of: object) -> Content:
        return self._make(str.strip, *of)

    def lstrip(self, *of: object) -> Content:
        return self._make(str.lstrip, *of)

    def rstrip(self, *of: object) -> Content:
        return self._make(str.rstrip, *of)

    def split(self, by: object) -> Parts:
        return Parts(self, by)

    def startswith(self, *start: object) -> bool:
        return self._ask(str.startswith, *start)

    def endswith(self, *end: object) -> bool:
        return self._ask(str.endswith, *end)

    def __bool__(self) -> bool:
        return self._ask(bool)

    def __contains__(self, other: object) -> bool:
        return self._ask(operator.contains, other)

    def __eq__(self, other: object) -> bool:
        return self._ask(operator.eq, other) if isinstance(other, str) else _refuse()

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = _refuse  # a class with `__eq__` loses what it has


class Parts(Opaque):
    """A content split by a text, of which only the first part and the last are there whatever the content."""

    def __init__(self, content: Content, by: object) -> None:
        self._content, self._by = content, by

    def __getitem__(self, n: object) -> Content:
        there = isinstance(self._by, str) and n in (0, -1)
        return self._content._make(_part, self._by, n) if there else _refuse()

    __add__ = __radd__ = _refuse


def _part(text: str, by: str, n: int) -> str:
    return text.split(by)[n]


class Noted(NamedTuple):
    """Something made or asked of a value, by its number: `call(value, *args)`."""

    of: int
    call: Callable[..., str | bool]
    args: tuple[object, ...]


class Trace:
    """What is made and asked of the contents of one dialogue."""

    def __init__(self, contents: Sequence[str]) -> None:
        self.values = [*contents]
        """Contents, then what is made."""
        self.contents = [Content(self, n) for n in range(len(contents))]
        """An object for each value."""
        self.steps: dict[Noted, Content | bool] = {}
        self.marked: list[str] = []
        """What is written between generation marks, one after the other."""

    def make(self, of: int, call: Callable[..., str], *args: object) -> Content:
        step = Noted(of, call, args)
        if step not in self.steps:
            self.values.append(call(self.values[of], *args))
            self.contents.append(Content(self, len(self.contents)))
            self.steps[step] = self.contents[-1]
        made = self.steps[step]
        assert isinstance(made, Content)
        return made

    def ask(self, of: int, call: Callable[..., bool], *args: object) -> bool:
        answer = call(self.values[of], *args)
        self.steps[Noted(of, call, args)] = answer
        return answer

    def joined(self, parts: Iterable[str]) -> str | Opaque:
        """What a macro or a block wrote: a content where it is one and nothing else."""
        text = "".join(parts)
        alone = VALUE.fullmatch(text)
        if alone:
            return self.contents[int(alone[1])]
        return Opaque(text) if OPEN in text else text

    def environment(self, plain: Environment) -> Environment:
        """An environment like transformers' in which contents may be objects of this trace."""
        out = plain.overlay(finalize=_finalized)
        out.filters = {**plain.filters, "trim": _trimmed}
        tests: dict[str, Any] = {
            "string": partial(_is_text, test_string),
            "iterable": partial(_is_text, test_iterable),
            "sequence": partial(_is_text, test_sequence),
            "sameas": _same,
        }
        out.tests = {**plain.tests, **tests}
        tracker: Any = next(e for e in out.extensions.values() if "generation" in e.tags)
        tracker._generation_support = self._noting(tracker._generation_support)
        vars(out).update(concat=self.joined, activate_tracker=tracker.activate_tracker)
        return out

    def _noting(self, support: Callable[[EvalContext, Callable[[], str]], str]) -> Callable[..., str]:
        @pass_eval_context
        def noted(context: EvalContext, caller: Callable[[], str | Opaque]) -> str:
            said = caller()
            text = said if isinstance(said, str) else said._written
            self.marked.append(text)
            return support(context, lambda: text)

        return noted


@pass_eval_context
def _finalized(context: EvalContext, value: object) -> object:
    """A value as Jinja turns it into text where a template writes it."""
    if context.autoescape and isinstance(value, Opaque):
        _refuse()  # the content is changed then, behind this
    return _bare(value) if isinstance(value, Opaque | str) else value


def _trimmed(value: str | Opaque, chars: str | None = None) -> str | Content:
    return value.strip(chars) if isinstance(value, Content) else do_trim(value, chars)  # type: ignore[arg-type]


def _is_text(test: Callable[[object], bool], value: object) -> bool:
    """A test that all texts pass."""
    if isinstance(value, Parts):
        _refuse()
    return isinstance(value, Opaque) or test(value)


def _same(value: object, other: object) -> bool:
    return _refuse() if isinstance(value, Opaque) or isinstance(other, Opaque) else value is other
