"""Messages: the turns of a dialogue, in the shapes that files hold them. Bad ones are errors that name the message and
its key.

    {"role": "user", "content": "Hi"}                      {"from": "human", "value": "Hi"}
    {"role": "assistant", "content": "Hello!", "weight": 0}    said, but not learnt; so are "train": false, "loss":
        false
    {"role": "assistant", "content": "7", "reasoning_content": "3 + 4"}    also thinking, reasoning {"role":
    "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": 4}}}]}
    {"role": "tool", "tool_call_id": "1", "name": "add", "content": "7"}

A content may be a list of parts {"type": "text", "text": "Hi"}. Arguments may be JSON in a text. A role and a content
may have both their names where they say the same.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from align.data.records import ROLES, Message, Messages, Role
from align.ground.errors import InputError
from align.recipe.problems import found

DIALOGUES = ("messages", "conversations")
OTHER_ROLES = {
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "function_call"), "assistant"),
    **dict.fromkeys(("function", "observation"), "tool"),
}
REASONING = ("reasoning_content", "thinking", "reasoning")
KEYS = {
    "role",
    "content",
    "from",
    "value",
    *REASONING,
    "tool_calls",
    "function_call",
    "tool_call_id",
    "name",
    "weight",
    "train",
    "loss",
}
"""What a message may say; any other key that says something is an error."""
PARTS = ("text", "input_text", "output_text")
"""Types of parts that are text (OpenAI's chat completions, and its responses)."""
CALL_KEYS = {"id", "type", "index", "function", "name", "arguments", "parameters"}
HH_START = re.compile(r"\s*Human:")
HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def messages_of(where: str, key: str, value: Any) -> Messages:
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


def _message(where: str, item: Any) -> Message:
    if not isinstance(item, dict):
        raise InputError(f"{where} is {found(item)}; expected an object with role and content.")
    said = {
        key: value for key, value in item.items() if not nothing(value) or key in ("role", "content", "from", "value")
    }
    speaks, says = _name(where, said, "role", "from"), _name(where, said, "content", "value")
    calls = _calls(where, said)
    if speaks not in said or (says not in said and not calls):
        raise InputError(
            f"{where} needs role and content (or from and value); found {', '.join(map(str, item)) or 'nothing'}."
        )
    if unknown := [key for key in said if key not in KEYS]:
        raise InputError(
            f"{where} has {quoted(unknown[0])}, which is none of the keys that a message may have "
            f"({', '.join(sorted(KEYS))}). Remove it, or write what it says into the content."
        )
    role = said[speaks]
    if role == "function_call":
        calls, said = _call_list(where, literal(said[says])), said | {says: ""}
    role = _role(role)
    if role not in ROLES:
        raise InputError(
            f"{where} has the {speaks} {quoted(role)}; expected {', '.join(ROLES[:-1])} or {ROLES[-1]} (or human, gpt)."
        )
    content = "" if said.get(says) is None and calls else text_of(where, says, said.get(says))
    thoughts = {_text(where, key, said[key]) for key in REASONING if key in said}
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
        tool_call_id=_text(where, "tool_call_id", said.get("tool_call_id", "")),
        name=_text(where, "name", said.get("name", "")),
        learn=_learnt(where, role, said),
    )


def _name(where: str, said: Mapping[str, Any], one: str, other: str) -> str:
    """Which of its two names a part of a message has. Raises: InputError where it has both, and they differ."""
    if nothing(said.get(one)) and other in said and (one not in said or not nothing(said[other])):
        return other
    if not nothing(said.get(other)) and _role(said[one]) != _role(said[other]):
        raise InputError(f"{where} has {one} and {other}, which differ. Keep one of them.")
    return one


def _role(role: Any) -> Any:
    return OTHER_ROLES.get(role, role) if isinstance(role, str) else role


def _learnt(where: str, role: str, said: Mapping[str, Any]) -> bool:
    """What `weight` (OpenAI: 0 or 1), `train` (axolotl: true or false) and `loss` (ms-swift: the same) say of an
    assistant's message."""
    values = {key: said[key] for key in ("weight", "train", "loss") if key in said}
    for key, value in values.items():
        if value not in (0, 1):
            raise InputError(
                f"{where}: {key} is {found(value)}; expected {'0 or 1' if key == 'weight' else 'true or false'}."
            )
    if role != "assistant" and (asked := [key for key in ("train", "loss") if values.get(key)]):
        raise InputError(f"{where} is by the {role}, but has {asked[0]}: true. Only what an assistant says is learnt.")
    return all(values.values())


def _calls(where: str, said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tool calls, also from OpenAI's older `function_call`."""
    calls = said.get("tool_calls", [])
    calls = literal(calls)
    if "function_call" in said:
        calls = [*(calls if isinstance(calls, list) else [calls]), said["function_call"]]
    return _call_list(where, calls) if calls else []


def _call_list(where: str, calls: Any) -> list[dict[str, Any]]:
    out = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(
                f'{where} has the tool call {found(call)}; expected {{"function": {{"name", "arguments"}}}}.'
            )
        if unknown := [
            key for key, value in (*call.items(), *function.items()) if key not in CALL_KEYS and not nothing(value)
        ]:
            raise InputError(
                f"{where}: the call of {function['name']} has {quoted(unknown[0])}, which is not read. Remove it."
            )
        arguments = function.get("arguments", function.get("parameters", {}))
        arguments = literal(arguments)
        if arguments is not None and not isinstance(arguments, dict):
            raise InputError(
                f"{where}: the arguments of {function['name']} are {found(arguments)}; expected an object, or its JSON."
            )
        named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        out.append({**named, "type": "function", "function": {"name": function["name"], "arguments": arguments or {}}})
    as_json(f"{where}: a tool call", out)
    return out


def schemas_of(where: str, key: str, value: Any) -> str:
    """The JSON of a list of function schemas, from that list or from its JSON. Raises: InputError."""
    value = literal(value)
    tools = value if isinstance(value, list) else [value]
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(
                f'{where}: "{key}" holds {found(tool)}; expected a list of {{"type": "function", "function": '
                f'{{"name", "parameters"}}}}.'
            )
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return as_json(f'{where}: "{key}"', wrapped)


def text_of(where: str, key: str, value: Any) -> str:
    """A text, or a list of text parts, joined. Raises: InputError, also for parts that are no text, by their type."""
    if isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value):
        return "".join(_part(f"{where}: part {i} of {key}", part) for i, part in enumerate(value, 1))
    return _text(where, key, value)


def _part(where: str, part: Mapping[str, Any]) -> str:
    if part["type"] not in PARTS:
        raise InputError(
            f"{where} is of type {quoted(part['type'])}; only parts of type text can be rendered. Remove the part or "
            f"the row."
        )
    others = (key for key, value in part.items() if key not in ("type", "text") and not nothing(value))
    if other := next(
        (key for key in others if not (key in ("weight", "train", "loss") and part[key] in (0, 1) and part[key])), None
    ):
        raise InputError(f"{where} has {quoted(other)}, which is not read of a part. Remove it, or the row.")
    return _text(where, "text", part.get("text"))


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} is {found(value)}; expected text.")
    return encodable(where, value)


def encodable(where: str, text: str) -> str:
    """The text, if it can be written. Raises: InputError for half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise InputError(
            f"{where} holds half a surrogate pair ({half!r}), which is no text. Repair or remove the row."
        ) from error
    return text


def as_json(where: str, value: Any) -> str:
    """The JSON of a value. Raises: InputError for one that JSON cannot hold, such as a date or NaN, and for half a
    surrogate pair."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} holds what JSON cannot ({error}). Write it as text, or remove the row.") from error
    return encodable(where, text)


def nothing(value: Any) -> bool:
    """Whether a value says nothing, as a column that other rows fill: null, or empty."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def quoted(value: Any) -> str:
    """A text in quotes; any other value as it was found."""
    return json.dumps(value) if isinstance(value, str) else found(value)


def literal(text: Any) -> Any:
    """What a text spells in JSON or in Python syntax (some published files hold lists so), else the text; any other
    value as it is."""
    if not isinstance(text, str):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def is_dialogue(value: Any) -> bool:
    """Whether a value holds turns: messages, or text in the form of Anthropic's HH data."""
    return isinstance(value, list) or (
        isinstance(value, str) and bool(HH_START.match(value)) and "\n\nAssistant:" in value
    )


def hh_turns(text: str) -> Messages:
    """Turns of "\\n\\nHuman: Hi\\n\\nAssistant: Hello!" (Bai et al. 2022, arXiv 2204.05862); a bare "Assistant:" at the
    end is no turn."""
    parts = HH_TURN.split("\n\n" + text.strip())[1:]
    roles = cast("Iterator[Role]", ("user" if speaker == "Human" else "assistant" for speaker in parts[::2]))
    messages = tuple(Message(role, content.strip()) for role, content in zip(roles, parts[1::2], strict=True))
    return messages if messages[-1].content or messages[-1].role == "user" else messages[:-1]
