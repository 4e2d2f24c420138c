"""Records as the rows of a file in keys of ours, which read as the same records."""

from __future__ import annotations

import json
from pathlib import Path

from align.data.records import (
    Conversation,
    Labelled,
    Message,
    Messages,
    Preference,
    Prompt,
    Ranking,
    Record,
    Row,
    Stepwise,
)
from align.ground.errors import InputError


def as_row(record: Record) -> Row:
    """The row of a record; raises nothing that reading it did not."""
    if isinstance(record, Conversation):
        messages = [_said(m, read=i < record.prompt) for i, m in enumerate(record.messages)]
        return {"messages": messages, **_tools(record.tools)}
    if isinstance(record, Prompt):
        return record.row() | dict(record.columns)
    if isinstance(record, Labelled):
        row: Row = {"prompt": _all(record.prompt), "completion": _all(record.completion), "label": record.label}
        return row | _tools(record.tools)
    if isinstance(record, Stepwise):
        row = {"prompt": _all(record.prompt), "completions": [*record.steps], "labels": [*record.labels]}
        return row | _tools(record.tools)
    if isinstance(record, Preference):
        row = {"prompt": _all(record.prompt), "chosen": _all(record.chosen), "rejected": _all(record.rejected)}
        row |= {} if record.margin is None else {"margin": record.margin}
        row |= {key: True for key, cut in zip(("chosen_cut", "rejected_cut"), record.cut, strict=True) if cut}
        return row | _tools(record.tools)
    if isinstance(record, Ranking):
        answers = [_all(answer) for answer in record.ordered]
        return {
            "prompt": _all(record.prompt),
            "responses": answers,
            "ranks": [*range(1, len(answers) + 1)],
            **_tools(record.tools),
        }
    return {"text": record.text}


def _said(message: Message, read: bool = False) -> Row:
    more = {"weight": 0} if message.role == "assistant" and (read or not message.learn) else {}
    return dict(message.plain()) | more


def _all(messages: Messages) -> list[Row]:
    return [_said(m) for m in messages]


def _tools(tools: str) -> Row:
    return {"tools": json.loads(tools)} if tools else {}


def new_file(name: str | Path) -> Path:
    """Raises: InputError where there is one."""
    if Path(name).exists():
        raise InputError(f"{name} exists already. Name a new file.")
    return Path(name)


def as_line(record: Record) -> str:
    """The row as JSON. Raises: InputError for what JSON cannot hold."""
    try:
        return json.dumps(as_row(record), ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"{record.where}: the row holds what JSON cannot ({error}). Write it as text.") from error
