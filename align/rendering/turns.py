"""Turns: which characters of a rendered dialogue count, and whether all that was given stands in it.

An answer counts from the end of the prompt that it is sampled from, `render(messages[:i], add_generation_prompt=True)`,
to its end-of-turn token in `render(messages[:i + 1])`, which must begin with that prompt. So what is trained on begins
with what is sampled from, for any template, with generation marks or without. White space after the end of turn does
not count: sampling has stopped by then.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from align.data.counts import Counts
from align.data.records import Messages
from align.ground.errors import InputError
from align.rendering.kept import THOUGHTS, Kept, find, pieces
from align.rendering.special import SpecialTokens, overlap, unmark
from align.rendering.templates.template import Span, Template

Text = tuple[str, list[Span], list[Span]]
"""A text, special tokens of contents in it, and what the template marks as generated."""


@dataclass(frozen=True)
class Rendered:
    """A text and the spans of it that count, one for each answer; `written` are special tokens that stand in
    contents."""

    text: str
    spans: list[Span]
    written: list[Span]
    where: str
    steps: Sequence[int] = ()
    """Where in the text each step of the answer ends, where its steps count and nothing else."""


@dataclass
class Turns:
    """Renders dialogues with one template, and checks each."""

    template: Template
    special: SpecialTokens
    counts: Counts
    apart: bool = False
    _last: tuple[object, Text] = (None, ("", [], []))
    """The last prompt that was rendered, which the two answers of a pair share, and what came out."""

    def __post_init__(self) -> None:
        self.kept = Kept(self.template)

    def prompt(self, messages: Messages, tools: str, where: str) -> Rendered:
        """What is sampled from. Raises: InputError where the template refuses it or leaves something out."""
        messages, marks = self.special.screen(messages, tools, where, self.counts)
        text, written, _ = self._text(messages, tools, where, marks, prompt=True)
        self._check_kept(text, messages, tools, where, prompt=True)
        return Rendered(text, [], written, where)

    def dialogue(self, messages: Messages, tools: str, learnt: Sequence[int], where: str) -> list[Rendered]:
        """The dialogue up to the last of the `learnt` answers, with their spans.

        Where the template renders an earlier answer in another way once later turns follow, such as Qwen3's, which
        leaves out its thoughts, that answer comes in a text of its own, as it is sampled; and so do all where answers
        are taken `apart`.
        Raises: InputError where the template refuses the dialogue or leaves something out, where what is sampled from
        is no beginning of it, or an answer has no end-of-turn token.
        """
        messages, marks = self.special.screen(messages[: learnt[-1] + 1], tools, where, self.counts)
        ends = [self._answer(messages[: i + 1], tools, where, marks) for i in learnt]
        whole = ends[-1]
        self._check_kept(whole.text, messages, tools, where)
        apart = [e for e in ends[:-1] if self.apart or not whole.text.startswith(e.text[: e.spans[0][1]])]
        together = [e.spans[0] for e in ends if e not in apart]
        self.counts.answers_taken_apart += len(apart)
        return [*apart, replace(whole, spans=together)]

    def _answer(self, messages: Messages, tools: str, where: str, marks: bool) -> Rendered:
        """The dialogue with the span of its last message."""
        prompt, _, _ = self._text(messages[:-1], tools, where, marks, prompt=True)
        text, written, generated = self._text(messages, tools, where, marks)
        record, where = where, f"{where}: message {len(messages)} (assistant)"
        if not text.startswith(prompt):
            raise InputError(_no_beginning(where, prompt, text, "enable_thinking" in self.template.source))
        said = len(prompt)
        for piece in pieces(messages[-1]):
            found = find(text, piece.text, len(prompt))
            if found is None:
                raise InputError(_left_out(where, piece.what))
            said = max(said, found[1])
        stop = next((m for m in self.special.end.finditer(text, said) if not overlap(m.span(), written)), None)
        if stop is None:
            raise InputError(
                f"{where}: no end-of-turn token follows in the rendered text, which goes on with "
                f"{text[said:][:40]!r}; a model would never learn to stop. Give a chat template that ends an answer "
                "with one (chat_template: FILE)."
            )
        span = (len(prompt), stop.end())
        if self.template.marked and not _covered(span, generated):
            inside = [text[a:b] for a, b in generated if b > span[0]]
            raise InputError(
                f"{where}: the answer is {_ends(text[slice(*span)])}, but the template's {{% generation %}} marks "
                f"stand around {_ends(inside[0]) if inside else 'nothing there'}. Put them around all that the "
                "assistant says, its end-of-turn token included, and nothing else."
            )
        return Rendered(text, [span], written, record)

    def _text(self, messages: Messages, tools: str, where: str, marks: bool, *, prompt: bool = False) -> Text:
        question = (messages, tools, marks) if prompt else None
        if prompt and self._last[0] == question:
            return self._last[1]
        plain = [m.plain() for m in messages]
        schemas = json.loads(tools) if tools else None
        given: tuple[Any, Any] = (plain, schemas)
        marked: tuple[Any, Any] = (self.special.mark(plain), self.special.mark(schemas)) if marks else given
        text, generated = self.template.render(marked[0], marked[1], where, prompt=prompt)
        out = unmark(text, generated) if marks else (text, [], generated)
        shut = given
        if self.special.may_join(messages, tools):
            shut = (self.special.seams.apart(plain), self.special.seams.apart(schemas))
        if shut != given:
            apart, _ = self.template.render(shut[0], shut[1], where, prompt=prompt)
            self.special.made_by_seams(out[0], apart, where, self.counts)
        if prompt:
            self._last = question, out
        return out

    def _check_kept(self, text: str, messages: Messages, tools: str, where: str, *, prompt: bool = False) -> None:
        """Whether each message stands in the text, once. Raises: InputError naming the first that does not.

        Thoughts of answers that are only read may be left out, as they are when the model is sampled; they are counted.
        """
        lost, repeated = self.kept.treatment(text, messages, tools, prompt=prompt)
        if lost and lost != THOUGHTS:
            raise InputError(_left_out(where, lost))
        if repeated:
            raise InputError(
                f"{where}: the chat template writes {repeated}, so the model would learn to repeat it. Give a template "
                "that writes each content once (chat_template: FILE)."
            )
        self.counts.earlier_thoughts_left_out += lost == THOUGHTS


def _covered(span: Span, others: Sequence[Span]) -> bool:
    """Whether every character of a span lies in one of the others, which ascend."""
    at = span[0]
    for start, end in others:
        at = max(at, end) if start <= at else at
    return at >= span[1]


# ---- sentences -------------------------------------------------------------------------------------------------------


def _left_out(where: str, what: str) -> str:
    return (
        f"{where}: the chat template leaves out {what}, so the model would never see it. Remove it from the data, or "
        "give a template that renders it (chat_template: FILE)."
    )


def _no_beginning(where: str, prompt: str, text: str, can_think: bool) -> str:
    differ = (i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b)
    at = next(differ, min(len(prompt), len(text)))
    switch = ""
    if can_think:
        switch = (
            ", or a copy of the template that begins with {% set enable_thinking = false %} (true, for answers with "
            "thoughts)"
        )
    return (
        f"{where}: an answer is sampled after {prompt[max(0, at - 20) : at + 40]!r}, but this one is rendered as "
        f"{text[max(0, at - 20) : at + 40]!r}. What is trained on must begin with what is sampled from: give the "
        f"answer what its prompt opens with, such as its thoughts (<think>…</think> or reasoning_content){switch}, or "
        "a chat template that renders both alike (chat_template: FILE)."
    )


def no_one_text(where: str) -> str:
    return (
        f"{where} holds several answers, and the chat template renders an earlier one in another way once later turns "
        "follow, so the row has no one rendering. Keep one answer in each, and the turns before it in the prompt."
    )


def _ends(text: str) -> str:
    return repr(text) if len(text) <= 44 else f"{text[:20]!r} … {text[-20:]!r}"


def learnt_from(messages: Messages, first: int) -> list[int]:
    """Which messages are learnt: the assistant's from `first` on, but those that the data set aside."""
    return [i for i, m in enumerate(messages) if i >= first and m.role == "assistant" and m.learn]
