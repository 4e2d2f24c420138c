"""What stands before the answer of a row, with all that belongs to it.

{"system": "Be brief.", "history": [["Hi", "Hello!"]], "instruction": "Add.", "input": "3 + 4", "output": "7"}
{"system": "Be brief.", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
"""

from __future__ import annotations

from collections.abc import Mapping

from align.data.records import Message, Messages
from align.data.shapes.answer import answer
from align.data.shapes.calls import schemas_of
from align.data.shapes.hh import hh_turns, is_hh
from align.data.shapes.keys import GIVEN, OPENING, PROMPT, SYSTEM, TOOLS, first, says
from align.data.shapes.messages import DIALOGUES, messages_of
from align.data.shapes.values import content, literal
from align.ground.errors import InputError
from align.recipe.telling.problems import found

OPENING_KEYS = frozenset(OPENING)


def opening(where: str, row: Mapping[str, object], key: str, others_are_used: bool = False) -> Messages:
    """What a row has under `key`, as messages, with all that belongs before and to it: system message, history, input
    and context.

    `others_are_used`: what is no part of it goes to judges, and so may say something else.
    Raises: InputError where two keys say what only one can say.
    """
    messages = dialogue(where, key, row[key])
    if row.keys().isdisjoint(OPENING_KEYS - {key}):
        return messages
    is_text = isinstance(row[key], str) and not is_hh(row[key]) and key not in DIALOGUES
    given = [name for name in GIVEN if name != key and says(row.get(name))]
    history = row.get("history")
    if not others_are_used:
        _check_same(where, row, key, messages)
        beside = [*given, "history"] if says(history) else given
        if not is_text and beside:
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


def dialogue(where: str, key: str, value: object) -> Messages:
    """Messages, text in the form of Anthropic's HH data, or a plain text, which is one user message. Raises:
    InputError."""
    if is_hh(value):
        return hh_turns(content(where, key, value))
    if isinstance(value, str) and key not in DIALOGUES:
        return (Message("user", content(where, key, value)),)
    return messages_of(where, key, value)


def _check_same(where: str, row: Mapping[str, object], key: str, messages: Messages) -> None:
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


def _says_no_more(where: str, row: Mapping[str, object], other: Messages, messages: Messages, is_prompt: bool) -> bool:
    """Whether other messages are these, of a pair with its chosen answer too, or, as a prompt, what they begin with."""
    if is_prompt:
        return other == messages[: len(other)]
    start, rest = other[: len(messages)], other[len(messages) :]
    if start != messages:
        return False
    return not rest or ("chosen" in row and rest == answer(where, "chosen", row["chosen"], messages))


def _system(where: str, row: Mapping[str, object]) -> Messages:
    said = {content(where, name, row[name]): name for name in SYSTEM if says(row.get(name))}
    if len(said) > 1:
        raise InputError(f"{where}: has {' and '.join(said.values())}, which differ. Keep one of them.")
    return tuple(Message("system", text) for text in said)


def _history(where: str, value: object) -> Messages:
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
            f'{where}: "history" holds something else than pairs. '
            "Expected a list of [question, answer] pairs, or of messages."
        )
    texts = [content(where, "history", text) for turn in turns for text in turn]
    return tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def tools(where: str, row: Mapping[str, object]) -> str:
    """The JSON of the schemas that a row has; empty where there are none. Raises: InputError."""
    given = [name for name in TOOLS if name in row and says(row[name])]
    if len(given) > 1:
        raise InputError(f"{where}: has tools and functions. Keep one of them.")
    return schemas_of(where, given[0], row[given[0]]) if given else ""
