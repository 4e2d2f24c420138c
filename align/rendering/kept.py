"""Whether all that was given stands in a rendered dialogue, and once: a template may leave out what it does not know,
or write something twice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from align.data.records import Message, Messages
from align.ground.json import Json
from align.rendering.templates.template import PLAIN_TEMPLATE, Span, Template, TemplateRefusal

MANY = 2
"""Of how many like parts a template is tried with: one that writes the first alone leaves out the second."""
THOUGHT = re.compile(r"<think>|</think>")
THOUGHTS = "thoughts"
"""All that is missing, where only such of answers that are read are."""

Shape = tuple[object, ...]
"""What two dialogues have in common of which a template leaves out the same."""
ToolsShape = tuple[int, bool, bool]
"""How many schemas, at most `MANY`; whether one has arguments that are described; whether one has choices."""
NO_TOOLS: ToolsShape = (0, False, False)


class Piece(NamedTuple):
    """A part of a message that must stand in the rendered text."""

    text: str
    what: str
    is_thought: bool = False


class Treatment(NamedTuple):
    """What a template does to dialogues of one shape, in words; "" where it does not."""

    lost: str = ""
    repeated: str = ""


@dataclass
class Kept:
    """What a template leaves out, and what it writes more than once."""

    template: Template
    _of_shapes: dict[Shape, Treatment] = field(default_factory=dict)
    """Of dialogues of one shape, by the shape."""

    def treatment(self, text: str, messages: Messages, tools: str, *, prompt: bool) -> Treatment:
        """What of a dialogue does not stand in its text, and which content of it does more than once. A content that
        another one quotes does not: that is tried with words that stand nowhere else."""
        found = self._treatment(messages, tools, prompt)
        return found if found.lost else found._replace(lost=_lost(text, messages, prompt))

    def _treatment(self, messages: Messages, tools: str, prompt: bool) -> Treatment:
        schemas = _tools_shape(tools)
        shape = (tuple(map(_shape, messages)), schemas, prompt)
        if shape not in self._of_shapes:
            self._of_shapes[shape] = self._of_shape(messages, schemas, prompt)
        return self._of_shapes[shape]

    def _of_shape(self, messages: Messages, tools: ToolsShape, prompt: bool) -> Treatment:
        """What the template does to a dialogue of this shape, tried with words that stand nowhere else."""
        words = (f"zq{i}x" for i in range(10**9))
        stand_in = tuple(_with_words(m, words) for m in messages)
        many, described, chosen = tools
        schema = [_tool(words, described, chosen) for _ in range(many)] or None
        try:
            text, _ = self.template.render([m.plain() for m in stand_in], schema, "", prompt=prompt)
        except TemplateRefusal:  # it wants contents of another kind; the record itself was rendered
            return Treatment()
        for i, message in enumerate(stand_in):
            if message.role in ("tool", "developer") and self.template.source != PLAIN_TEMPLATE:
                as_user = [*stand_in[:i], replace(message, role="user"), *stand_in[i + 1 :]]
                if self.template.reads_alike([m.plain() for m in as_user], schema, text, prompt=prompt):
                    return Treatment(f"the role of message {i + 1} ({message.role})")
        said = re.findall(r"zq\d+x", json.dumps(schema))
        if not all(word in text for word in said):
            return Treatment("tools")
        return Treatment(_lost(text, stand_in, prompt, deep=True), _repeated(text, stand_in))


def _lost(text: str, messages: Messages, prompt: bool, *, deep: bool = False) -> str:
    """The first message that does not stand in the text, in words; `THOUGHTS` where only those are missing."""
    at, thoughts = 0, ""
    for i, message in enumerate(messages, 1):
        in_order = message.role not in ("system", "developer")  # a template may put those where it wants
        start = at if in_order else 0
        for piece in pieces(message, deep=deep):
            found = find(text, piece.text, start)
            if found is not None:
                at = max(at, found[1]) if in_order else at
            elif piece.is_thought and (prompt or i < len(messages)):
                thoughts = THOUGHTS
            else:
                return f"the {piece.what} of message {i} ({message.role})"
    return thoughts


def _repeated(text: str, messages: Messages) -> str:
    """The first message whose content, in words that stand nowhere else, stands more than once in the text."""
    for i, message in enumerate(messages, 1):
        for piece in pieces(message):
            if piece.what in ("content", "reasoning_content") and text.count(piece.text) > 1:
                return f"the {piece.what} of message {i} ({message.role}) {text.count(piece.text):,} times"
    return ""


def pieces(message: Message, *, deep: bool = False) -> Iterator[Piece]:
    """What must stand of a message, without the white space around it; `deep`: the arguments of its tool calls too."""
    if message.reasoning.strip():
        yield Piece(message.reasoning.strip(), "reasoning_content", True)
    parts = THOUGHT.split(message.content) if message.role == "assistant" else [message.content]
    for i, part in enumerate(parts, 1):
        if part.strip():
            yield Piece(part.strip(), "content", i < len(parts))
    if message.name and message.role != "tool":
        yield Piece(message.name, "name")
    for call in _calls(message):
        yield Piece(call["function"]["name"], "tool_calls")
        arguments = call["function"]["arguments"] if deep else {}
        yield from (Piece(word, "tool_calls") for pair in arguments.items() for word in pair)


def find(text: str, piece: str, start: int) -> Span | None:
    """Where a piece stands, as it is or as JSON writes it."""
    at = text.find(piece, start)
    if at < 0:
        piece = json.dumps(piece, ensure_ascii=False)[1:-1]
        at = text.find(piece, start)
    return (at, at + len(piece)) if at >= 0 else None


def _shape(message: Message) -> Shape:
    has = (bool(text) for text in (message.content, message.reasoning, message.name))
    calls = tuple(min(len(arguments), MANY) for arguments in _arguments(message))
    return message.role, "</think>" in message.content, *has, calls


def _calls(message: Message) -> list[dict[str, Any]]:
    return list(json.loads(message.tool_calls)) if message.tool_calls else []


def _arguments(message: Message) -> list[Json]:
    return [call["function"].get("arguments") or {} for call in _calls(message)]


def _tools_shape(tools: str) -> ToolsShape:
    if not tools:
        return NO_TOOLS
    schemas = json.loads(tools)
    parameters = json.dumps([schema.get("function", schema).get("parameters") for schema in schemas])
    return min(len(schemas), MANY), '"description"' in parameters, '"enum"' in tools


def _with_words(message: Message, words: Iterator[str]) -> Message:
    """A message of the same shape that says words of its own."""
    content = message.content and next(words)
    if "</think>" in message.content:
        content = f"<think>\n{next(words)}\n</think>\n\n{content}"
    calls = []
    for call, said in zip(_calls(message), _arguments(message), strict=True):
        name, size = next(words), max(1, min(len(said), MANY))
        arguments = {next(words): next(words) for _ in range(size)}
        calls.append({**call, "function": {"name": name, "arguments": arguments}})
    return replace(
        message,
        content=content,
        reasoning=message.reasoning and next(words),
        name=message.name and next(words),
        tool_calls=json.dumps(calls) if calls else "",
    )


def _tool(words: Iterator[str], described: bool, chosen: bool) -> Json:
    """A schema of two arguments, with their descriptions and choices."""

    def argument() -> Json:
        schema: Json = {"type": "string"}
        if described:
            schema["description"] = next(words)
        if chosen:
            schema["enum"] = [next(words), next(words)]
        return schema

    name, purpose = next(words), next(words)
    properties = {next(words): argument() for _ in range(MANY)}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": purpose, "parameters": parameters}}
