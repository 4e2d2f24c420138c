"""Turns: which characters of a rendered dialogue count, and whether all that was given stands in it.

An answer counts from the end of the prompt that it is sampled from, `render(messages[:i], add_generation_prompt=True)`,
to its end-of-turn token in `render(messages[:i + 1])`, which must begin with that prompt. So what is trained on begins
with what is sampled from, for any template, with generation marks or without. White space after the end of turn does
not count: sampling has stopped by then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from align.data.counts import Counts
from align.data.records import Message, Messages
from align.data.rendering.special import SpecialTokens, overlap, unmark
from align.data.rendering.templates import PLAIN_TEMPLATE, Span, Template, TemplateRefusal
from align.ground.errors import InputError

MANY = 2
"""Of how many like parts a template is tried with: one that writes the first alone leaves out the second."""
THOUGHT = re.compile(r"<think>|</think>")


@dataclass(frozen=True)
class Rendered:
    """A text and the spans of it that count, one for each answer; `written` are special tokens that stand in
    contents."""

    text: str
    spans: list[Span]
    written: list[Span]
    where: str


class _Piece(NamedTuple):
    """A part of a message that must stand in the rendered text."""

    text: str
    what: str
    is_thought: bool = False


@dataclass
class Turns:
    """Renders dialogues with one template, and checks each."""

    template: Template
    special: SpecialTokens
    counts: Counts
    apart: bool = False
    _lost: dict[object, str] = field(default_factory=dict)
    """What the template leaves out of dialogues of one shape, by the shape."""
    _last: tuple[object, object] = (None, None)
    """The last prompt that was rendered, which the two answers of a pair share, and what came out."""

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
        for piece in _pieces(messages[-1]):
            found = _find(text, piece.text, len(prompt))
            if found is None:
                raise InputError(_left_out(where, piece.what))
            said = max(said, found[1])
        stop = next((m for m in self.special.end.finditer(text, said) if not overlap(m.span(), written)), None)
        if stop is None:
            raise InputError(
                f"{where}: no end-of-turn token follows in the rendered text, which goes on with "
                f"{text[said:][:40]!r}; a model would never "
                "learn to stop. Give a chat template that ends an answer with one (chat_template: FILE)."
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

    def _text(
        self, messages: Messages, tools: str, where: str, marks: bool, *, prompt: bool = False
    ) -> tuple[str, list[Span], list[Span]]:
        """(text, special tokens of contents in it, what the template marks as generated)."""
        asked = (messages, tools, marks) if prompt else None
        if prompt and self._last[0] == asked:
            return self._last[1]
        plain: object = [m.plain() for m in messages]
        schemas = json.loads(tools) if tools else None
        marked, marked_schemas = (self.special.mark(plain), self.special.mark(schemas)) if marks else (plain, schemas)
        text, generated = self.template.render(marked, marked_schemas, where, prompt=prompt)
        out = unmark(text, generated) if marks else (text, [], generated)
        shut, shut_schemas = self.special.seams.apart(plain), self.special.seams.apart(schemas)
        if (shut, shut_schemas) != (plain, schemas):
            apart, _ = self.template.render(shut, shut_schemas, where, prompt=prompt)
            self.special.made_by_seams(out[0], apart, where, self.counts)
        if prompt:
            self._last = asked, out
        return out

    # ---- is all of it there? -----------------------------------------------------------------------------------------

    def _check_kept(self, text: str, messages: Messages, tools: str, where: str, *, prompt: bool = False) -> None:
        """Whether each message stands in the text. Raises: InputError naming the first that does not.

        Thoughts of answers that are only read may be left out, as they are when the model is sampled; they are counted.
        """
        shape = (tuple(map(_shape, messages)), _tools_shape(tools), prompt)
        if shape not in self._lost:
            self._lost[shape] = self._lost_of_shape(messages, _tools_shape(tools), prompt)
        lost = self._lost[shape] or _lost(text, messages, prompt)
        if lost and lost != "thoughts":
            raise InputError(_left_out(where, lost))
        self.counts.earlier_thoughts_left_out += lost == "thoughts"

    def _lost_of_shape(self, messages: Messages, tools: tuple[int, bool, bool], prompt: bool) -> str:
        """What the template leaves out of a dialogue of this shape, tried with words that stand nowhere else."""
        words = (f"zq{i}x" for i in range(10**9))
        stand_in = tuple(_with_words(m, words) for m in messages)
        schema = [_tool(words, *tools[1:]) for _ in range(tools[0])] or None
        try:
            text, _ = self.template.render([m.plain() for m in stand_in], schema, "", prompt=prompt)
        except TemplateRefusal:  # it wants contents of another kind; the record itself was rendered
            return ""
        for i, message in enumerate(stand_in):
            if message.role in ("tool", "developer") and self.template.source != PLAIN_TEMPLATE:
                as_user = [*stand_in[:i], replace(message, role="user"), *stand_in[i + 1 :]]
                if self.template.reads_alike([m.plain() for m in as_user], schema, text, prompt=prompt):
                    return f"the role of message {i + 1} ({message.role})"
        if schema and any(word not in text for word in re.findall(r"zq\d+x", json.dumps(schema))):
            return "tools"
        return _lost(text, stand_in, prompt, deep=True)


def _lost(text: str, messages: Messages, prompt: bool, *, deep: bool = False) -> str:
    """The first message that does not stand in the text, in words; "thoughts" where only such of answers that are read
    are missing."""
    at, thoughts = 0, ""
    for i, message in enumerate(messages, 1):
        in_order = message.role not in ("system", "developer")  # a template may put those where it wants
        start = at if in_order else 0
        for piece in _pieces(message, deep=deep):
            found = _find(text, piece.text, start)
            if found is not None:
                at = max(at, found[1]) if in_order else at
            elif piece.is_thought and (prompt or i < len(messages)):
                thoughts = "thoughts"
            else:
                return f"the {piece.what} of message {i} ({message.role})"
    return thoughts


def _pieces(message: Message, *, deep: bool = False) -> Iterator[_Piece]:
    """What must stand of a message, without the white space around it; `deep`: the arguments of its tool calls too."""
    if message.reasoning.strip():
        yield _Piece(message.reasoning.strip(), "reasoning_content", True)
    parts = THOUGHT.split(message.content) if message.role == "assistant" else [message.content]
    for i, part in enumerate(parts, 1):
        if part.strip():
            yield _Piece(part.strip(), "content", i < len(parts))
    if message.name and message.role != "tool":
        yield _Piece(message.name, "name")
    for call in json.loads(message.tool_calls) if message.tool_calls else []:
        yield _Piece(call["function"]["name"], "tool_calls")
        for words in call["function"]["arguments"].items() if deep else ():
            yield from (_Piece(word, "tool_calls") for word in words)


def _find(text: str, piece: str, start: int) -> Span | None:
    """Where a piece stands, as it is or as JSON writes it."""
    for form in (piece, json.dumps(piece, ensure_ascii=False)[1:-1]):
        if (at := text.find(form, start)) >= 0:
            return at, at + len(form)
    return None


def _shape(message: Message) -> object:
    calls = tuple(min(len(arguments), MANY) for arguments in _arguments(message))
    return (
        message.role,
        bool(message.content),
        "</think>" in message.content,
        bool(message.reasoning),
        bool(message.name),
        calls,
    )


def _arguments(message: Message) -> list[dict[str, object]]:
    calls = json.loads(message.tool_calls) if message.tool_calls else []
    return [call["function"].get("arguments") or {} for call in calls]


def _tools_shape(tools: str) -> tuple[int, bool, bool]:
    """(how many, at most `MANY`, whether one has arguments that are described, whether one has choices)."""
    schemas = json.loads(tools) if tools else []
    return (
        min(len(schemas), MANY),
        '"description"' in json.dumps([s.get("function", s).get("parameters") for s in schemas]),
        '"enum"' in tools,
    )


def _with_words(message: Message, words: Iterator[str]) -> Message:
    """A message of the same shape that says words of its own."""
    content = message.content and next(words)
    if "</think>" in message.content:
        content = f"<think>\n{next(words)}\n</think>\n\n{content}"
    calls = json.loads(message.tool_calls) if message.tool_calls else []
    sizes = [max(1, min(len(arguments), MANY)) for arguments in _arguments(message)]
    calls = [
        {**call, "function": {"name": next(words), "arguments": {next(words): next(words) for _ in range(size)}}}
        for call, size in zip(calls, sizes, strict=True)
    ]
    return replace(
        message,
        content=content,
        reasoning=message.reasoning and next(words),
        name=message.name and next(words),
        tool_calls=json.dumps(calls) if calls else "",
    )


def _tool(words: Iterator[str], described: bool, chosen: bool) -> dict[str, object]:
    """A schema of two arguments, with their descriptions and choices."""

    def argument() -> dict[str, object]:
        more = ({"description": next(words)} if described else {}) | (
            {"enum": [next(words), next(words)]} if chosen else {}
        )
        return {"type": "string", **more}

    name, purpose = next(words), next(words)
    properties = {next(words): argument() for _ in range(MANY)}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": purpose, "parameters": parameters}}


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
    at = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), min(len(prompt), len(text)))
    switch = (
        ", or a copy of the template that begins with {% set enable_thinking = false %} (true, for answers with "
        "thoughts)"
    )
    return (
        f"{where}: an answer is sampled after {prompt[max(0, at - 20) : at + 40]!r}, but this one is rendered as "
        f"{text[max(0, at - 20) : at + 40]!r}. What is trained on must begin with what is sampled from: give the "
        "answer what its prompt opens with, such as its thoughts (<think>…</think> or "
        f"reasoning_content){switch if can_think else ''}, or a chat template that renders both alike (chat_template: "
        "FILE)."
    )


def _ends(text: str) -> str:
    return repr(text) if len(text) <= 44 else f"{text[:20]!r} … {text[-20:]!r}"
