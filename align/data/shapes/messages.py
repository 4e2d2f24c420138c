"""Messages: the turns of a dialogue, in the shapes that files hold them. Bad ones are errors that name the message and
its key.

    {"role": "user", "content": "Hi"}                      {"from": "human", "value": "Hi"}
    {"role": "assistant", "content": "Hello!", "weight": 0}    not learnt; so are "train": false, "loss": false
    {"role": "assistant", "content": "7", "reasoning_content": "3 + 4"}    also thinking, reasoning
    {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}]}
    {"role": "tool", "tool_call_id": "1", "name": "add", "content": "7"}

A content may be a list of parts {"type": "text", "text": "Hi"}. A role and a content may have both their names where
they say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from align.data.records import ROLES, Message, Messages, Role
from align.data.shapes.calls import call_list, calls_of
from align.data.shapes.values import LEARNT, as_json, encodable, literal, nothing, plain_text, quoted, text_of
from align.ground.errors import InputError
from align.recipe.telling.problems import found

DIALOGUES = ("messages", "conversations")
OTHER_ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "function_call"), "assistant"),
    **dict.fromkeys(("function", "observation"), "tool"),
}
REASONING = ("reasoning_content", "thinking", "reasoning")
CALLS = ("tool_calls", "function_call", "tool_call_id", "name")
KEYS = {"role", "content", "from", "value", *REASONING, *CALLS, *LEARNT}
"""What a message may say; any other key that says something is an error."""

PLAIN = {"role", "content"}


def messages_of(where: str, key: str, value: object) -> Messages:
    """A list of {role, content} or {from, value}, or one of them, or such a list as text in JSON or Python syntax.
    Raises: InputError."""
    if isinstance(value, str):
        value = literal(value)
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        expected = "a list of messages" if key in DIALOGUES else "text or a list of messages"
        raise InputError(f'{where}: "{key}" is {found(value)}; expected {expected}.')
    if not items:
        raise InputError(f'{where}: "{key}" is an empty list. Expected at least one message.')
    return tuple(_message(f'{where}: message {i} of "{key}"', item) for i, item in enumerate(items, 1))


def _message(where: str, item: object) -> Message:
    if not isinstance(item, dict):
        raise InputError(f"{where} is {found(item)}; expected an object with role and content.")
    if item.keys() == PLAIN and item["role"] in ROLES and isinstance(item["content"], str):
        return Message(cast(Role, item["role"]), encodable(where, item["content"]))  # as most are
    needed = ("role", "content", "from", "value")
    said = {key: value for key, value in item.items() if not nothing(value) or key in needed}
    speaks, says = _name(where, said, "role", "from"), _name(where, said, "content", "value")
    calls = calls_of(where, said)
    if speaks not in said or (says not in said and not calls):
        raise InputError(
            f"{where} needs role and content (or from and value); found {', '.join(map(str, item)) or 'nothing'}."
        )
    unknown = [key for key in said if key not in KEYS]
    if unknown:
        raise InputError(
            f"{where} has {quoted(unknown[0])}, which is none of the keys that a message may have "
            f"({', '.join(sorted(KEYS))}). Remove it, or write what it says into the content."
        )
    if said[speaks] == "function_call":
        calls, said = call_list(where, literal(said[says])), said | {says: ""}
    role = _role(said[speaks])
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(
            f"{where} has the {speaks} {quoted(role)}; expected {', '.join(ROLES[:-1])} or {ROLES[-1]} (or human, gpt)."
        )
    is_call_alone = said.get(says) is None and calls
    content = "" if is_call_alone else text_of(where, says, said.get(says))
    thoughts = {plain_text(where, key, said[key]) for key in REASONING if key in said}
    if len(thoughts) > 1:
        raise InputError(f"{where} has several of {', '.join(REASONING)}, and they differ. Keep one.")
    if role != "assistant" and (calls or thoughts):
        raise InputError(
            f"{where} is by the {role}, but has {'tool calls' if calls else 'thoughts'}, which only an assistant has."
        )
    return Message(
        cast(Role, role),
        content,
        reasoning=next(iter(thoughts), ""),
        tool_calls=as_json(where, calls) if calls else "",
        tool_call_id=plain_text(where, "tool_call_id", said.get("tool_call_id", "")),
        name=plain_text(where, "name", said.get("name", "")),
        learn=_learnt(where, role, said),
    )


def _name(where: str, said: Mapping[str, object], one: str, other: str) -> str:
    """Which of its two names a part of a message has. Raises: InputError where it has both, and they differ."""
    if nothing(said.get(one)) and other in said and (one not in said or not nothing(said[other])):
        return other
    if not nothing(said.get(other)) and _role(said[one]) != _role(said[other]):
        raise InputError(f"{where} has {one} and {other}, which differ. Keep one of them.")
    return one


def _role(role: object) -> object:
    return OTHER_ROLES.get(role, role) if isinstance(role, str) else role


def _learnt(where: str, role: str, said: Mapping[str, object]) -> bool:
    """What `weight` (OpenAI: 0 or 1), `train` (axolotl: true or false) and `loss` (ms-swift: as `train`) say of an
    assistant's message."""
    values = {key: said[key] for key in LEARNT if key in said}
    for key, value in values.items():
        if value not in (0, 1):
            expected = "0 or 1" if key == "weight" else "true or false"
            raise InputError(f"{where}: {key} is {found(value)}; expected {expected}.")
    learnt = [key for key in ("train", "loss") if values.get(key)]
    if role != "assistant" and learnt:
        raise InputError(f"{where} is by the {role}, but has {learnt[0]}: true. Only what an assistant says is learnt.")
    return all(values.values())
