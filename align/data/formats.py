"""Reading data sets: files of many shapes in, records out. Bad input is an error that names file, line and key, and says what to do.

Files: JSONL, JSON (a list of objects), CSV and TSV, each also with .gz; Parquet; a folder of `datasets.save_to_disk`; plain text (.txt)
for pretraining.

    conversation   {"prompt": "Hi", "completion": "Hello!"}
                   {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
                   {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}
    preference     {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "margin": 1.0}
                   {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: What?"}
    prompt         {"prompt": "Hi", "answer": "kept for a judge"}
    text           {"text": "Once upon a time"}

Wherever a text stands for a turn, a list of messages may stand too (see `messages`). A `system` column opens the dialogue, a `tools`
column holds the schemas of what the assistant may call.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

from align.data.files import Row, data_digest, read_documents, read_rows, suffix
from align.data.messages import DIALOGUES, encodable, hh_turns, is_dialogue, messages_of, tools_of
from align.data.records import Conversation, Message, Messages, Preference, Prompt, Text
from align.data.split import split_by_prompt
from align.errors import InputError
from align.recipe.problems import found

__all__ = ["Records", "data_digest", "read_conversations", "read_preferences", "read_prompts", "read_rows", "read_texts", "split_by_prompt"]

R = TypeVar("R", bound=Conversation | Preference | Prompt | Text)
SYNONYMS = {
    **dict.fromkeys(("question", "instruction", "query"), "prompt"),
    **dict.fromkeys(("answer", "response", "output"), "completion"),
    **dict.fromkeys(("preferred", "winner"), "chosen"),
    **dict.fromkeys(("dispreferred", "loser"), "rejected"),
    **dict.fromkeys(("content", "story", "document"), "text"),
}
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
UNANSWERED = "dialogues without a last answer"


class Records(list[R]):
    """Records of one kind. `dropped` counts the rows that were left out, by the reason."""

    dropped: Counter[str]

    def __init__(self, records: Sequence[R] = (), dropped: Mapping[str, int] | None = None) -> None:
        super().__init__(records)
        self.dropped = Counter(dropped or {})

    def __str__(self) -> str:
        return f"{len(self):,} records" + (f" (left out: {_counted(self.dropped)})" if self.dropped else "")


# ---- the four kinds --------------------------------------------------------------------------------------------------------------------


def read_conversations(path: str | Path, limit: int | None = None) -> Records[Conversation]:
    """Dialogues to imitate, each with at least one answer by the assistant; with `limit` those of the first rows alone.

    Raises: InputError naming file, line and key, as every reader here does.
    """
    return _collect(path, "conversation", read_rows(path), _conversation, limit)


def read_preferences(path: str | Path, limit: int | None = None) -> Records[Preference]:
    """Pairs of a better and a worse answer. Rows whose two answers are equal are dropped and counted."""
    return _collect(path, "preference", read_rows(path), _preference, limit)


def read_prompts(path: str | Path, limit: int | None = None) -> Records[Prompt]:
    """Dialogues to be answered: `prompt`, a whole dialogue without its last answer, or what the two answers of a pair have in common."""
    return _collect(path, "prompt", read_rows(path), _prompt, limit)


def read_texts(path: str | Path, limit: int | None = None) -> Records[Text]:
    """Documents: the `text` of every row; in a .txt file what stands between <|endoftext|> lines, or, without any, between blank lines."""
    rows = read_documents(Path(path)) if suffix(Path(path)) == ".txt" else read_rows(path)
    return _collect(path, "document", rows, _text, limit)


def _collect(
    path: str | Path, kind: str, rows: Iterator[Row], parse: Callable[[str, dict[str, Any]], R | str], limit: int | None
) -> Records[R]:
    """Parse every row, or the first ones. A parser returns a record, or the reason why the row is left out."""
    records: Records[R] = Records()
    with closing(cast(Any, rows)):  # the file, where a row is refused or the rest is not read
        for where, row in islice(rows, limit):
            record = parse(where, row)
            if isinstance(record, str):
                records.dropped[record] += 1
            else:
                records.append(record)
    if records.dropped and not records:
        raise InputError(f"{path}: every row was left out ({_counted(records.dropped)}). Expected at least one {kind} to work with.")
    if not records:
        raise InputError(f"{path}: the data set is empty. Expected at least one {kind}.")
    return records


def _conversation(where: str, row: dict[str, Any]) -> Conversation | str:
    prompt: Messages = ()
    key = next((key for key in DIALOGUES if key in row), None)
    if key:
        messages = _dialogue(where, key, row)
        if not any(m.role == "assistant" for m in messages):
            raise InputError(f'{where}: "{key}" has no assistant message. A conversation needs at least one, which is what is learnt.')
    else:
        _need(where, row, "conversation", ("prompt", "completion"))
        prompt = _dialogue(where, "prompt", row)
        messages = prompt + _answer(where, "completion", row["completion"], prompt)
    for message in messages:
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            raise InputError(f'{where}: an assistant message in "{key or "prompt"}" is empty. Remove the row, or give it text.')
    read_only = len(prompt) if any(m.role == "assistant" for m in prompt) else 0
    if not any(m.role == "assistant" and m.learn for m in messages[read_only:]):
        return "dialogues without an answer to learn"
    return Conversation(messages, read_only, where, tools_of(where, row.get("tools")))


def _preference(where: str, row: dict[str, Any]) -> Preference | str:
    if _unanswered(row):
        return UNANSWERED
    prompt, chosen, rejected = _pair(where, row)
    if chosen == rejected:
        return "pairs whose chosen equals rejected"
    cut = (row.get("chosen_cut") is True, row.get("rejected_cut") is True)
    return Preference(prompt, chosen, rejected, _margin(where, row.get("margin")), cut, where, tools_of(where, row.get("tools")))


def _prompt(where: str, row: dict[str, Any]) -> Prompt | str:
    if _unanswered(row):
        return UNANSWERED
    key = next((key for key in ("prompt", *DIALOGUES) if key in row), None)
    if key is None and is_dialogue(row.get("chosen")) and is_dialogue(row.get("rejected")):
        messages = _pair(where, row)[0]
    else:
        key = key or "prompt"
        _need(where, row, "prompt", (key,))
        messages = _dialogue(where, key, row)
        while messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not messages:
            raise InputError(f'{where}: "{key}" is empty before the answer. A prompt needs at least one message to answer.')
    columns = {name: value for name, value in row.items() if name not in (key, "system")}
    return Prompt(messages, columns, where, tools_of(where, row.get("tools")))


def _text(where: str, row: dict[str, Any]) -> Text | str:
    _need(where, row, "document", ("text",))
    text = _content(where, "text", row["text"])
    return Text(text, where) if text.strip() else "empty texts"


# ---- parts of a row --------------------------------------------------------------------------------------------------------------------


def _need(where: str, row: Mapping[str, Any], kind: str, keys: Sequence[str]) -> None:
    """Raises: InputError when a key is missing, naming those found and the renaming that would do."""
    missing = [key for key in keys if key not in row]
    if not missing:
        return
    names = " and ".join(f'"{key}"' for key in missing)
    renames = [f"{name} to {SYNONYMS[name]}" for name in row if SYNONYMS.get(name) in missing]
    remedy = f" Rename {' and '.join(renames)}." if renames else ""
    either = " (or messages)" if kind in ("conversation", "prompt") else ""
    raise InputError(
        f"{where}: {names} {'is' if len(missing) == 1 else 'are'} missing. "
        f"A {kind} needs {_listed(keys)}{either}; found {', '.join(row) or 'nothing'}.{remedy}"
    )


def _pair(where: str, row: dict[str, Any]) -> tuple[Messages, Messages, Messages]:
    """(prompt, chosen, rejected). Without a prompt a row holds two whole dialogues, and the prompt is what they have in common."""
    key = next((key for key in ("prompt", *DIALOGUES) if key in row), None)
    if key or not (is_dialogue(row.get("chosen")) and is_dialogue(row.get("rejected"))):
        key = key or "prompt"
        _need(where, row, "preference", (key, "chosen", "rejected"))
        prompt = _dialogue(where, key, row)
        chosen, rejected = (_answer(where, k, _without_text(row[k], row[key]), prompt) for k in ("chosen", "rejected"))
        return prompt, chosen, rejected
    chosen, rejected = (_dialogue(where, k, row) for k in ("chosen", "rejected"))
    common = next((i for i, (c, r) in enumerate(zip(chosen, rejected, strict=False)) if c != r), min(len(chosen), len(rejected)))
    while common and not all(len(d) > common and d[common].role == "assistant" for d in (chosen, rejected)):
        common -= 1
    if not common:
        raise InputError(f'{where}: "chosen" and "rejected" have no prompt in common. Begin both with the same turns, or add a prompt.')
    prompt = chosen[:common]
    return prompt, _answer(where, "chosen", chosen, prompt), _answer(where, "rejected", rejected, prompt)


def _unanswered(row: Mapping[str, Any]) -> bool:
    """Whether a pair of HH texts lacks a last answer, as a few in the published files do; left out and counted."""
    dialogues = [hh_turns(row[k]) for k in ("chosen", "rejected") if isinstance(row.get(k), str) and is_dialogue(row[k])]
    return not any(k in row for k in ("prompt", *DIALOGUES)) and any(turns[-1].role != "assistant" for turns in dialogues)


def _answer(where: str, key: str, value: Any, prompt: Messages) -> Messages:
    """What comes after the prompt: a text, one message, or messages that may repeat the prompt first."""
    if isinstance(value, str):
        messages: Messages = (Message("assistant", _content(where, key, value)),)
    else:
        messages = value if isinstance(value, tuple) else messages_of(where, key, value)
        for start in (prompt, tuple(m for m in prompt if m.role != "system")):
            if start and messages[: len(start)] == start:
                messages = messages[len(start) :]
                break
    if not messages or not (messages[-1].content.strip() or messages[-1].tool_calls):
        raise InputError(f'{where}: "{key}" is empty. Remove the row, or give it text.')
    if messages[0].role != "assistant":
        raise InputError(
            f'{where}: "{key}" opens with a {messages[0].role} message that is not in the prompt. Expected an assistant message.'
        )
    return messages


def _without_text(value: Any, prompt: Any) -> Any:
    """An answer to a prompt written as "\\n\\nHuman: ... \\n\\nAssistant:" may repeat that text, and has a blank before its first word."""
    if isinstance(value, str) and isinstance(prompt, str) and is_dialogue(prompt):
        return value.removeprefix(prompt).strip()
    return value


def _dialogue(where: str, key: str, row: Mapping[str, Any]) -> Messages:
    """The messages under `key`, a system column before them. A plain text is one user message."""
    value = row[key]
    if media := [name for name in MEDIA if row.get(name)]:
        raise InputError(f'{where}: has "{media[0]}", but only text can be rendered. Remove the row, or the column from all rows.')
    if isinstance(value, str) and is_dialogue(value):
        messages = hh_turns(value)
    elif isinstance(value, str) and key not in DIALOGUES:
        messages = (Message("user", _content(where, key, value)),)
    else:
        messages = messages_of(where, key, value)
    system = row.get("system")
    if not system:
        return messages
    if messages and messages[0].role == "system":
        raise InputError(f'{where}: "system" is set, and "{key}" opens with a system message too. Keep one of them.')
    return (Message("system", _content(where, "system", system)), *messages)


def _content(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f'{where}: "{key}" is {found(value)}; expected text.')
    return encodable(f'{where}: "{key}"', value)


def _margin(where: str, value: Any) -> float | None:
    """A number, also as text, since CSV knows nothing else."""
    if value is None or value == "":
        return None
    try:
        margin = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise InputError(f'{where}: "margin" is {found(value)}; expected a finite number, or no margin.')
    return margin


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _counted(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in dropped.items())
