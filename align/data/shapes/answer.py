"""The answer of a row: a text, one message, or messages, which may repeat the prompt first.

{"prompt": "3 + 4?", "completion": "7", "thinking": "Count on from 3."}
{"prompt": "Hi", "completion": [{"role": "assistant", "content": "Hello!"}]}
"""

from __future__ import annotations

from collections.abc import Mapping

from align.data.records import Message, Messages
from align.data.shapes.hh import HH_TURN, hh_turns, is_hh
from align.data.shapes.keys import says
from align.data.shapes.messages import REASONING, messages_of
from align.data.shapes.values import content, encodable
from align.ground.errors import InputError


def answer(where: str, key: str, value: object, prompt: Messages, row: Mapping[str, object] | None = None) -> Messages:
    """What comes after the prompt. What a `row` says that the assistant thought before it goes with a text. Raises:
    InputError."""
    beside = row or {}
    named = [name for name in REASONING if says(beside.get(name))]
    thoughts = {content(where, name, beside[name]): name for name in named}
    if len(thoughts) > 1 or (thoughts and not isinstance(value, str)):
        raise InputError(
            f'{where}: has "{next(iter(thoughts.values()))}", but "{key}" is no one text. '
            "Write thoughts into the messages."
        )
    if isinstance(value, str):
        messages: Messages = (Message("assistant", content(where, key, value), reasoning=next(iter(thoughts), "")),)
    else:
        messages = _after(prompt, value if isinstance(value, tuple) else messages_of(where, key, value))
        for message in messages:
            encodable(f'{where}: "{key}"', message.content)
    if not messages or not (messages[-1].content.strip() or messages[-1].tool_calls):
        raise InputError(f'{where}: "{key}" is empty. Remove the row, or give it text.')
    if messages[0].role != "assistant":
        raise InputError(
            f'{where}: "{key}" opens with a {messages[0].role} message that is not in the prompt. '
            "Expected an assistant message."
        )
    return messages


def _after(prompt: Messages, messages: Messages) -> Messages:
    """Messages without the prompt that they repeat, its system message or not."""
    for start in (prompt, tuple(m for m in prompt if m.role != "system")):
        if start and messages[: len(start)] == start:
            return messages[len(start) :]
    return messages


def in_turns(value: object, prompt: object) -> object:
    """The answer to a prompt in the form of HH: turns of such a text too, which may repeat the prompt's."""
    if not (isinstance(value, str) and value.strip() and is_hh(prompt)):
        return value
    return hh_turns(value if HH_TURN.match("\n\n" + value.lstrip()) else f"Assistant: {value}")
