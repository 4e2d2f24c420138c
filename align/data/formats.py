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

Wherever a text stands for a turn, a list of messages may stand too. A `system` column opens the dialogue.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from align.data.files import Row, data_digest, read_documents, read_rows, suffix
from align.data.records import ROLES, Conversation, Message, Messages, Preference, Prompt, Role, Text
from align.errors import InputError
from align.recipe.problems import found

__all__ = ["Records", "data_digest", "read_conversations", "read_preferences", "read_prompts", "read_rows", "read_texts", "split_by_prompt"]

R = TypeVar("R", bound=Conversation | Preference | Prompt | Text)
DIALOGUES = ("messages", "conversations")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
SYNONYMS = {
    **dict.fromkeys(("question", "instruction", "query"), "prompt"),
    **dict.fromkeys(("answer", "response", "output"), "completion"),
    **dict.fromkeys(("preferred", "winner"), "chosen"),
    **dict.fromkeys(("dispreferred", "loser"), "rejected"),
    **dict.fromkeys(("content", "story", "document"), "text"),
}
UNANSWERED = "dialogues without a last answer"
HH_START = re.compile(r"\s*Human:")
HH_TURN = re.compile(r"\n\n(Human|Assistant):")


class Records(list[R]):
    """Records of one kind. `dropped` counts the rows that were left out, by the reason."""

    dropped: Counter[str]

    def __init__(self, records: Sequence[R] = (), dropped: Mapping[str, int] | None = None) -> None:
        super().__init__(records)
        self.dropped = Counter(dropped or {})

    def __str__(self) -> str:
        return f"{len(self):,} records" + (f" (left out: {_counted(self.dropped)})" if self.dropped else "")


# ---- the four kinds --------------------------------------------------------------------------------------------------------------------


def read_conversations(path: str | Path) -> Records[Conversation]:
    """Dialogues to imitate, each with at least one answer by the assistant.

    Raises: InputError naming file, line and key, as every reader here does.
    """
    return _collect(path, "conversation", read_rows(path), _conversation)


def read_preferences(path: str | Path) -> Records[Preference]:
    """Pairs of a better and a worse answer. Rows whose two answers are equal are dropped and counted."""
    return _collect(path, "preference", read_rows(path), _preference)


def read_prompts(path: str | Path) -> Records[Prompt]:
    """Dialogues to be answered: `prompt`, a whole dialogue without its last answer, or what the two answers of a pair have in common."""
    return _collect(path, "prompt", read_rows(path), _prompt)


def read_texts(path: str | Path) -> Records[Text]:
    """Documents: the `text` of every row; in a .txt file what stands between <|endoftext|> lines, or, without any, between blank lines."""
    rows = read_documents(Path(path)) if suffix(Path(path)) == ".txt" else read_rows(path)
    return _collect(path, "document", rows, _text)


def _collect(path: str | Path, kind: str, rows: Iterable[Row], parse: Callable[[str, dict[str, Any]], R | str]) -> Records[R]:
    """Parse every row. A parser returns a record, or the reason why the row is left out."""
    records: Records[R] = Records()
    for where, row in rows:
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


def _conversation(where: str, row: dict[str, Any]) -> Conversation:
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
        if message.role == "assistant" and not message.content.strip():
            raise InputError(f'{where}: an assistant message in "{key or "prompt"}" is empty. Remove the row, or give it text.')
    read_only = len(prompt) if any(m.role == "assistant" for m in prompt) else 0
    return Conversation(messages, read_only, where)


def _preference(where: str, row: dict[str, Any]) -> Preference | str:
    if _unanswered(row):
        return UNANSWERED
    prompt, chosen, rejected = _pair(where, row)
    if chosen == rejected:
        return "pairs whose chosen equals rejected"
    cut = (row.get("chosen_cut") is True, row.get("rejected_cut") is True)
    return Preference(prompt, chosen, rejected, _margin(where, row.get("margin")), cut, where)


def _prompt(where: str, row: dict[str, Any]) -> Prompt | str:
    if _unanswered(row):
        return UNANSWERED
    key = next((key for key in ("prompt", *DIALOGUES) if key in row), None)
    if key is None and _is_dialogue(row.get("chosen")) and _is_dialogue(row.get("rejected")):
        messages = _pair(where, row)[0]
    else:
        key = key or "prompt"
        _need(where, row, "prompt", (key,))
        messages = _dialogue(where, key, row)
        while messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not messages:
            raise InputError(f'{where}: "{key}" is empty before the answer. A prompt needs at least one message to answer.')
    return Prompt(messages, {name: value for name, value in row.items() if name not in (key, "system")}, where)


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
    if key or not (_is_dialogue(row.get("chosen")) and _is_dialogue(row.get("rejected"))):
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
    dialogues = [_hh_turns(row[k]) for k in ("chosen", "rejected") if isinstance(row.get(k), str) and _is_dialogue(row[k])]
    return not any(k in row for k in ("prompt", *DIALOGUES)) and any(turns[-1].role != "assistant" for turns in dialogues)


def _answer(where: str, key: str, value: Any, prompt: Messages) -> Messages:
    """What comes after the prompt: a text, one message, or messages that may repeat the prompt first."""
    if isinstance(value, str):
        messages: Messages = (Message("assistant", _content(where, key, value)),)
    else:
        messages = value if isinstance(value, tuple) else _messages(where, key, value)
        for start in (prompt, tuple(m for m in prompt if m.role != "system")):
            if start and messages[: len(start)] == start:
                messages = messages[len(start) :]
                break
    if not messages or not messages[-1].content.strip():
        raise InputError(f'{where}: "{key}" is empty. Remove the row, or give it text.')
    if messages[0].role != "assistant":
        raise InputError(
            f'{where}: "{key}" opens with a {messages[0].role} message that is not in the prompt. Expected an assistant message.'
        )
    return messages


def _without_text(value: Any, prompt: Any) -> Any:
    """An answer to a prompt written as "\\n\\nHuman: ... \\n\\nAssistant:" may repeat that text, and has a blank before its first word."""
    if isinstance(value, str) and isinstance(prompt, str) and _is_dialogue(prompt):
        return value.removeprefix(prompt).strip()
    return value


def _dialogue(where: str, key: str, row: Mapping[str, Any]) -> Messages:
    """The messages under `key`, a system column before them. A plain text is one user message."""
    value = row[key]
    if isinstance(value, str) and _is_dialogue(value):
        messages = _hh_turns(value)
    elif isinstance(value, str) and key not in DIALOGUES:
        messages = (Message("user", _content(where, key, value)),)
    else:
        messages = _messages(where, key, value)
    system = row.get("system")
    if not system:
        return messages
    if messages and messages[0].role == "system":
        raise InputError(f'{where}: "system" is set, and "{key}" opens with a system message too. Keep one of them.')
    return (Message("system", _content(where, "system", system)), *messages)


def _messages(where: str, key: str, value: Any) -> Messages:
    """A list of {role, content} or {from, value}, or one of them, or such a list as text in JSON or Python syntax."""
    if isinstance(value, str):
        value = _literal(value)
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
    names = next((pair for pair in (("role", "content"), ("from", "value")) if pair[0] in item and pair[1] in item), None)
    if names is None:
        raise InputError(f"{where} needs role and content (or from and value); found {', '.join(item) or 'nothing'}.")
    if item.get("tool_calls"):
        raise InputError(f"{where} has tool_calls, which are not supported. Remove the row, or write the call into content.")
    role, content = item[names[0]], item[names[1]]
    role = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise InputError(f"{where} has the {names[0]} {json.dumps(role)}; expected {', '.join(ROLES[:-1])} or {ROLES[-1]} (or human, gpt).")
    if not isinstance(content, str):
        raise InputError(f"{where}: {names[1]} is {found(content)}; expected text.")
    return Message(cast(Role, role), _encodable(where, content))


def _content(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f'{where}: "{key}" is {found(value)}; expected text.')
    return _encodable(f'{where}: "{key}"', value)


def _encodable(where: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise InputError(f"{where} holds half a surrogate pair ({half!r}), which is no text. Repair or remove the row.") from error
    return text


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


def _literal(text: str) -> Any:
    """The list that a text spells in JSON or in Python syntax (some published files hold it so), else the text."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _is_dialogue(value: Any) -> bool:
    """Whether a value holds turns: messages, or text in the form of Anthropic's HH data."""
    return isinstance(value, list) or (isinstance(value, str) and bool(HH_START.match(value)) and "\n\nAssistant:" in value)


def _hh_turns(text: str) -> Messages:
    """Turns of "\\n\\nHuman: Hi\\n\\nAssistant: Hello!" (Bai et al. 2022, arXiv 2204.05862); a bare "Assistant:" at the end is no turn."""
    parts = HH_TURN.split("\n\n" + text.strip())[1:]
    roles = cast("Iterator[Role]", ("user" if speaker == "Human" else "assistant" for speaker in parts[::2]))
    messages = tuple(Message(role, content.strip()) for role, content in zip(roles, parts[1::2], strict=True))
    return messages if messages[-1].content or messages[-1].role == "user" else messages[:-1]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _counted(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in dropped.items())


# ---- splitting -------------------------------------------------------------------------------------------------------------------------


def split_by_prompt(records: Sequence[R], fraction: float, limit: int = 1000) -> tuple[list[R], list[R]]:
    """(to train on, held out): about `fraction` of the prompts, at most `limit` of them, chosen by their hash.

    A prompt is what stands before the assistant's first word, or a whole text, so that all records of one prompt, and all stages of one
    dialogue, are on one side. The hash depends on nothing else, so a prompt held out of one data set is held out of the next one too, below
    `limit`, however the rows are ordered. From two prompts on, both sides get at least one, unless `fraction` is 0.
    """
    hashes = [_opening_hash(record) for record in records]
    ranked = sorted(set(hashes))
    chosen = sum(h < fraction for h in ranked)
    chosen = min(max(chosen, 1), len(ranked) - 1, limit) if fraction > 0 and ranked else 0
    held_out = set(ranked[:chosen])
    train = [record for record, h in zip(records, hashes, strict=True) if h not in held_out]
    return train, [record for record, h in zip(records, hashes, strict=True) if h in held_out]


def _opening_hash(record: Conversation | Preference | Prompt | Text) -> float:
    """A number in [0, 1) that depends on the record's opening alone."""
    if isinstance(record, Text):
        opening: Any = record.text
    else:
        messages = record.prompt if isinstance(record, Preference) else record.messages
        opening = [(m.role, m.content) for m in itertools.takewhile(lambda m: m.role != "assistant", messages)]
    return int.from_bytes(hashlib.sha256(json.dumps(opening).encode()).digest()[:6]) / 2**48
