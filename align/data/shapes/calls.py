"""Calls of tools, and the schemas of tools that may be called.

    {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}]}
    {"role": "assistant", "function_call": {"name": "add", "arguments": "{\\"a\\": 3}"}}    OpenAI's older form
    {"tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]}

Arguments may be JSON in a text, and a schema may stand without the object around it.
"""

from __future__ import annotations

from collections.abc import Mapping

from align.data.shapes.values import as_json, literal, nothing, quoted
from align.ground.errors import InputError
from align.ground.json import Json
from align.recipe.telling.problems import found

CALL_KEYS = {"id", "type", "index", "function", "name", "arguments", "parameters"}


def calls_of(where: str, said: Mapping[str, object]) -> list[Json]:
    """Tool calls, also from OpenAI's older `function_call`."""
    calls = literal(said.get("tool_calls", []))
    if "function_call" in said:
        calls = [*(calls if isinstance(calls, list) else [calls]), said["function_call"]]
    return call_list(where, calls) if calls else []


def call_list(where: str, calls: object) -> list[Json]:
    """A list of calls, or one alone, each in the first form. Raises: InputError."""
    several = calls if isinstance(calls, list) else [calls]
    out = [_call(where, call) for call in several]
    as_json(f"{where}: a tool call", out)
    return out


def _call(where: str, call: object) -> Json:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InputError(f'{where} has the tool call {found(call)}; expected {{"function": {{"name", "arguments"}}}}.')
    name = function["name"]
    said = [key for key, value in (*call.items(), *function.items()) if not nothing(value)]
    unknown = [key for key in said if key not in CALL_KEYS]
    if unknown:
        raise InputError(f"{where}: the call of {name} has {quoted(unknown[0])}, which is not read. Remove it.")
    arguments = literal(function.get("arguments", function.get("parameters", {})))
    if arguments is not None and not isinstance(arguments, dict):
        raise InputError(f"{where}: the arguments of {name} are {found(arguments)}; expected an object, or its JSON.")
    named: Json = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**named, "type": "function", "function": {"name": name, "arguments": arguments or {}}}


def schemas_of(where: str, key: str, value: object) -> str:
    """The JSON of a list of function schemas, from that list or from its JSON. Raises: InputError."""
    value = literal(value)
    wrapped = []
    for tool in value if isinstance(value, list) else [value]:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(
                f'{where}: "{key}" holds {found(tool)}; '
                'expected a list of {"type": "function", "function": {"name", "parameters"}}.'
            )
        wrapped.append(tool if "function" in tool else {"type": "function", "function": tool})
    return as_json(f'{where}: "{key}"', wrapped)
