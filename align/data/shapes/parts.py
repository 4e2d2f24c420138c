"""Parts of a row: what stands before the answer, the answer, and what is said about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from align.data.records import Message, Messages
from align.data.shapes.keys import ASKED, GIVEN, OPENING, PROMPT, SYSTEM, TOOLS, first, need, says
from align.data.shapes.messages import (
    DIALOGUES,
    HH_TURN,
    REASONING,
    encodable,
    hh_turns,
    is_dialogue,
    literal,
    messages_of,
    schemas_of,
)
from align.ground.errors import InputError
from align.recipe.problems import found

OPENING_KEYS = frozenset(OPENING)


def opening(where: str, row: Mapping[str, Any], key: str, others_are_used: bool = False) -> Messages:
    """What a row has under `key`, as messages, with all that belongs before and to it: system message, history, input
    and context.

    `others_are_used`: what is no part of it goes to judges, and so may say something else.
    Raises: InputError where two keys say what only one can say.
    """
    messages = dialogue(where, key, row[key])
    if row.keys().isdisjoint(OPENING_KEYS - {key}):
        return messages
    is_text = isinstance(row[key], str) and not is_dialogue(row[key]) and key not in DIALOGUES
    given = [name for name in GIVEN if name != key and says(row.get(name))]
    history = row.get("history")
    if not others_are_used:
        _check_same(where, row, key, messages)
        if not is_text and (beside := [*given, *(["history"] if says(history) else [])]):
            raise InputError(
                f'{where}: has "{beside[0]}" beside "{key}", which holds turns. Write it into them, and remove the key.'
            )
    if is_text and given:
        texts = [messages[0].content, *(content(where, name, row[name]) for name in given)]
        messages = (Message("user", "\n".join(text for text in texts if text)),)
    if is_text and says(history):
        messages = _history(where, history) + messages
    system = _system(where, row)
    if system and messages and messages[0].role == "system":
        raise InputError(
            f'{where}: "{first(row, SYSTEM)}" is set, and "{key}" opens with a system message too. Keep one of them.'
        )
    return system + messages


def dialogue(where: str, key: str, value: Any) -> Messages:
    """Messages, text in the form of Anthropic's HH data, or a plain text, which is one user message. Raises:
    InputError."""
    if isinstance(value, str) and is_dialogue(value):
        return hh_turns(content(where, key, value))
    if isinstance(value, str) and key not in DIALOGUES:
        return (Message("user", content(where, key, value)),)
    return messages_of(where, key, value)


def _check_same(where: str, row: Mapping[str, Any], key: str, messages: Messages) -> None:
    """What else could be the prompt says no more than the messages do (UltraChat's and UltraFeedback's rows hold it
    twice)."""
    for other in (*DIALOGUES, *PROMPT):
        value = row.get(other)
        if other == key or not says(value):
            continue
        if isinstance(value, str) and other not in DIALOGUES:
            same = value.strip() in [m.content.strip() for m in messages if m.role == "user"]
        else:
            same = _says_no_more(where, row, dialogue(where, other, value), messages, is_prompt=other in PROMPT)
        if not same:
            raise InputError(f'{where}: has "{key}" and "{other}", which differ. Keep one of them.')


def _says_no_more(where: str, row: Mapping[str, Any], other: Messages, messages: Messages, is_prompt: bool) -> bool:
    """Whether other messages are these, of a pair with its chosen answer too, or, as a prompt, what they begin with."""
    if is_prompt:
        return other == messages[: len(other)]
    start, rest = other[: len(messages)], other[len(messages) :]
    return start == messages and (
        not rest or ("chosen" in row and rest == answer(where, "chosen", row["chosen"], messages))
    )


def _system(where: str, row: Mapping[str, Any]) -> Messages:
    said = {content(where, name, row[name]): name for name in SYSTEM if says(row.get(name))}
    if len(said) > 1:
        raise InputError(f"{where}: has {' and '.join(said.values())}, which differ. Keep one of them.")
    return tuple(Message("system", text) for text in said)


def _history(where: str, value: Any) -> Messages:
    """Earlier turns: pairs of what was asked and answered (as in LLaMA-Factory), or messages."""
    turns = literal(value)
    if not isinstance(turns, list):
        raise InputError(
            f'{where}: "history" is {found(value)}; expected a list of [question, answer] pairs, or of messages.'
        )
    if all(isinstance(turn, dict) for turn in turns):
        return messages_of(where, "history", turns)
    if not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise InputError(
            f'{where}: "history" holds something else than pairs. Expected a list of [question, answer] pairs, or of '
            f"messages."
        )
    texts = [content(where, "history", text) for turn in turns for text in turn]
    return tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def holds_two_dialogues(row: Mapping[str, Any]) -> bool:
    return is_dialogue(row.get("chosen")) and is_dialogue(row.get("rejected"))


def key_of_pair(row: Mapping[str, Any]) -> str | None:
    """Where the prompt of a pair stands; None where two dialogues hold it themselves."""
    key = first(row, ("prompt", *DIALOGUES, *ASKED))
    apart = key is not None and says(row[key])
    return key if apart or not holds_two_dialogues(row) else None


def pair(where: str, row: Mapping[str, Any]) -> tuple[Messages, Messages, Messages]:
    """(prompt, chosen, rejected). Without a prompt a row holds two whole dialogues, and the prompt is what they have in
    common."""
    key = key_of_pair(row)
    if key or not holds_two_dialogues(row):
        need(where, row, "preference")
        assert key is not None
        prompt = opening(where, row, key)
        chosen, rejected = (answer(where, k, in_turns(row[k], row[key]), prompt) for k in ("chosen", "rejected"))
        return prompt, chosen, rejected
    chosen, rejected = (opening(where, row, k) for k in ("chosen", "rejected"))
    common = next(
        (i for i, (c, r) in enumerate(zip(chosen, rejected, strict=False)) if c != r), min(len(chosen), len(rejected))
    )
    while common and not all(len(d) > common and d[common].role == "assistant" for d in (chosen, rejected)):
        common -= 1
    if not common:
        raise InputError(
            f'{where}: "chosen" and "rejected" have no prompt in common. Begin both with the same turns, or add a '
            f"prompt."
        )
    prompt = chosen[:common]
    return prompt, answer(where, "chosen", chosen, prompt), answer(where, "rejected", rejected, prompt)


def answer(where: str, key: str, value: Any, prompt: Messages, row: Mapping[str, Any] | None = None) -> Messages:
    """What comes after the prompt: a text, one message, or messages that may repeat the prompt first. What a `row` says
    that the assistant thought before it goes with a text. Raises: InputError."""
    named = () if row is None or row.keys().isdisjoint(REASONING) else REASONING
    thoughts = {content(where, name, row[name]): name for name in named if row and says(row.get(name))}
    if len(thoughts) > 1 or (thoughts and not isinstance(value, str)):
        raise InputError(
            f'{where}: has "{next(iter(thoughts.values()))}", but "{key}" is no one text. Write thoughts into the '
            f"messages."
        )
    if isinstance(value, str):
        messages: Messages = (Message("assistant", content(where, key, value), reasoning=next(iter(thoughts), "")),)
    else:
        messages = value if isinstance(value, tuple) else messages_of(where, key, value)
        for message in messages:
            encodable(f'{where}: "{key}"', message.content)
        for start in (prompt, tuple(m for m in prompt if m.role != "system")):
            if start and messages[: len(start)] == start:
                messages = messages[len(start) :]
                break
    if not messages or not (messages[-1].content.strip() or messages[-1].tool_calls):
        raise InputError(f'{where}: "{key}" is empty. Remove the row, or give it text.')
    if messages[0].role != "assistant":
        raise InputError(
            f'{where}: "{key}" opens with a {messages[0].role} message that is not in the prompt. Expected an '
            f"assistant message."
        )
    return messages


def in_turns(value: Any, prompt: Any) -> Any:
    """The answer to a prompt written as "\\n\\nHuman: ... \\n\\nAssistant:": turns of such a text too, which may repeat
    the prompt's."""
    if not (isinstance(value, str) and value.strip() and isinstance(prompt, str) and is_dialogue(prompt)):
        return value
    return hh_turns(value if HH_TURN.match("\n\n" + value.lstrip()) else f"Assistant: {value}")


def tools(where: str, row: Mapping[str, Any]) -> str:
    """The JSON of the schemas that a row has; empty where there are none. Raises: InputError."""
    given = [name for name in TOOLS if name in row and says(row[name])]
    if len(given) > 1:
        raise InputError(f"{where}: has tools and functions. Keep one of them.")
    return schemas_of(where, given[0], row[given[0]]) if given else ""


def content(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f'{where}: "{key}" is {found(value)}; expected text.')
    return encodable(f'{where}: "{key}"', value)


def margin(where: str, value: Any) -> float | None:
    """A number, also as text, since CSV knows nothing else."""
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f'{where}: "margin" is {found(value)}; expected a finite number, or no margin.')
    return number


def was_cut(where: str, key: str, value: Any) -> bool:
    """Whether an answer was cut off before its end: true or false, also as text. Raises: InputError."""
    said = str(value).lower() if says(value) else "false"
    if said not in ("true", "false"):
        raise InputError(f'{where}: "{key}" is {found(value)}; expected true or false.')
    return said == "true"
