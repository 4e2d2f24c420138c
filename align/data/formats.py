"""Reading data sets: files of many shapes in, records out. Bad input is an error that names file, line and key, and
says what to do.

Files: JSONL, JSON (a list, objects one after the other, or an object that holds the list), CSV and TSV as spreadsheets
write them, each also with .gz, .bz2 or .xz; Parquet; a folder of `datasets.save_to_disk`; plain text (.txt) for
pretraining; several by a pattern, such as shards/*.jsonl.

    conversation   {"prompt": "Hi", "completion": "Hello!"}
                   {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
                   {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}
    preference     {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "margin": 1.0}
                   {"prompt": "Hi", "responses": ["Hello!", "Hm.", "What?"], "scores": [9, 5, 1]}
                   {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": "…"}
    labelled       {"prompt": "Hi", "completion": "Hello!", "label": true}
    in steps       {"prompt": "3 + 4 + 5?", "completions": ["3 + 4 is 7.", "7 + 5 is 13."], "labels": [true, false]}
    prompt         {"prompt": "Hi", "answer": "kept for a judge"}
    text           {"text": "Once upon a time"}

Wherever a text stands for a turn, a list of messages may stand too (see `messages`). `system` opens the dialogue,
`history` goes before the prompt, `input` and `context` follow it, `tools` holds the schemas of what the assistant may
call. `align.data.shapes.keys` has the other names of these, `align.data.dialects` what others write in another
way. Keys that say what a record cannot hold are errors; all other keys are named as not used, or, of prompts, go to
judges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol

from align.data.collect import LOOKED, Into, Read, Records, collect
from align.data.files.sources import Table, data_digest
from align.data.files.tables import read_documents, read_rows
from align.data.records import Conversation, Labelled, Messages, Preference, Prompt, R, Ranking, Row, Text
from align.data.shapes.answer import answer, in_turns
from align.data.shapes.hh import hh_turns, is_dialogue, is_hh
from align.data.shapes.keys import ASKED, COMPLETION, GIVEN, LABELLED, SYSTEM, check_refused, first, says
from align.data.shapes.label import answered, label_of
from align.data.shapes.messages import DIALOGUES, REASONING
from align.data.shapes.needed import need
from align.data.shapes.opening import opening, tools
from align.data.shapes.pair import holds_two_dialogues, key_of_pair, margin, pair, was_cut
from align.data.shapes.ranked import best_first, is_ranked, pairs_of
from align.data.shapes.values import as_json, content
from align.data.shapes.verdicts import is_tie
from align.data.split import split_by_prompt
from align.ground.errors import InputError
from align.recipe import BadRows

__all__ = [
    "LOOKED",
    "RecordReader",
    "Records",
    "data_digest",
    "labelled",
    "read_conversations",
    "read_kept_prompts",
    "read_pairs",
    "read_preferences",
    "read_prompts",
    "read_rankings",
    "read_rows",
    "read_texts",
    "split_by_prompt",
]


class RecordReader(Protocol[R]):
    """What reads a data set as records of one kind."""

    def __call__(
        self,
        path: str | Path,
        bad_rows: BadRows = ...,
        sample: int | None = ...,
        columns: Mapping[str, str] | None = ...,
        shape: str | None = ...,
    ) -> Records[R]: ...


UNANSWERED = "dialogues without a last answer"
WRITTEN = ("completion", "ended")
"""What is written beside a prompt; the row's own keys of these names are kept as `GIVEN_AS` + name."""
GIVEN_AS = "given_"


# ---- one row ---------------------------------------------------------------------------------------------------------


def _conversation(where: str, row: Row) -> Conversation | str:
    check_refused(where, row, "conversation")
    prompt: Messages = ()
    key = first(row, (*DIALOGUES, *ASKED))
    if key in DIALOGUES:
        messages = opening(where, row, key)
        if not any(m.role == "assistant" for m in messages):
            raise InputError(
                f'{where}: "{key}" has no assistant message. '
                "A conversation needs at least one, which is what is learnt."
            )
        for name in ("completion", *REASONING):
            if says(row.get(name)) and row[name] not in (messages[-1].content, messages[-1].reasoning):
                raise InputError(
                    f'{where}: has "{name}" beside "{key}", which does not hold it. Write it there, and remove the key.'
                )
    else:
        need(where, row, "conversation")
        prompt = opening(where, row, key or "")
        said = first(row, COMPLETION) or ""
        messages = prompt + answer(where, said, in_turns(row[said], row[key or ""]), prompt, row)
    for message in messages:
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            raise InputError(
                f'{where}: an assistant message in "{key or "prompt"}" is empty. Remove the row, or give it text.'
            )
    is_read_only = any(m.role == "assistant" for m in prompt)
    read_only = len(prompt) if is_read_only else 0
    if not any(m.role == "assistant" and m.learn for m in messages[read_only:]):
        return "dialogues without an answer to learn"
    return Conversation(messages, read_only, where, tools(where, row))


def _preference(where: str, row: Row) -> Preference | str:
    check_refused(where, row, "preference")
    if _unanswered(row):
        return UNANSWERED
    prompt, chosen, rejected = pair(where, row)
    if _answers(chosen) == _answers(rejected):
        return "pairs whose chosen equals rejected"
    if is_tie(where, row):
        return "pairs whose answers are called equally good"
    chosen_cut, rejected_cut = (was_cut(where, key, row.get(key)) for key in ("chosen_cut", "rejected_cut"))
    gap = margin(where, row.get("margin"))
    return Preference(prompt, chosen, rejected, gap, (chosen_cut, rejected_cut), where, tools(where, row))


def _preferences(where: str, row: Row) -> Read[Preference]:
    """A pair, or every two of several answers."""
    if not is_ranked(row):
        return _preference(where, row)
    return [_preference(where, two) for two in pairs_of(where, row)]


def _ranking(where: str, row: Row) -> Read[Ranking]:
    """Several answers, best first; of those that are worth the same the first. A pair is two."""
    if not is_ranked(row):
        two = _preference(where, row)
        return (
            two if isinstance(two, str) else Ranking(two.prompt, (two.chosen, two.rejected), two.cut, where, two.tools)
        )
    check_refused(where, row, "preference")
    rows, ties = best_first(where, row)
    if not rows:
        return "lists whose answers are all called equally good"
    read = [pair(where, two) for two in rows]
    answers = (read[0][1], *(worse for _, _, worse in read))
    made = Ranking(read[0][0], tuple(map(_answers, answers)), (False,) * len(answers), where, tools(where, row))
    return [made, *["answers that are called as good as one before"] * ties]


def labelled(where: str, row: Row) -> Read[Labelled]:
    """What a row holds of answers that are desirable or not. Raises: InputError."""
    if is_ranked(row):
        raise InputError(
            f"{where}: holds several answers with scores or ranks, and which of them are desirable is not said. Write "
            "each in a row of its own, with a label."
        )
    if "chosen" in row or "rejected" in row:
        pair = _preference(where, row)
        if isinstance(pair, str):
            return pair
        sides = ((pair.chosen, True), (pair.rejected, False))
        return [Labelled(pair.prompt, said, label, where, pair.tools) for said, label in sides]
    check_refused(where, row, LABELLED)
    prompt, completion = answered(where, row)
    return Labelled(prompt, completion, label_of(where, row), where, tools(where, row))


def _prompt(where: str, row: Row) -> Prompt | str:
    check_refused(where, row, "prompt")
    if _unanswered(row):
        return UNANSWERED
    key = key_of_pair(row)
    read = {key, *SYSTEM}
    if key is None and holds_two_dialogues(row):
        messages = pair(where, row)[0]
    else:
        need(where, row, "prompt")
        assert key is not None
        messages = opening(where, row, key, others_are_used=True)
        while messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not messages:
            raise InputError(
                f'{where}: "{key}" is empty before the answer. A prompt needs at least one message to answer.'
            )
        if isinstance(row[key], str) and not is_dialogue(row[key]):
            read |= {"history", *GIVEN}
    columns = {name: value for name, value in row.items() if name not in read}
    as_text = key is not None and isinstance(row[key], str) and len(messages) == 1
    return Prompt(messages, columns, where, tools(where, row), as_text)


def _text(where: str, row: Row) -> Text | str:
    check_refused(where, row, "document")
    need(where, row, "document")
    text = content(where, "text", row["text"])
    return Text(text, where) if text.strip() else "empty texts"


def _answers(messages: Messages) -> Messages:
    """Messages up to the last of the assistant: what follows is never answered, and so never learnt."""
    last = max(i for i, m in enumerate(messages) if m.role == "assistant")
    return tuple(replace(m, learn=True) for m in messages[: last + 1])


def _kept_prompt(where: str, row: Row) -> Prompt | str:
    prompt = _prompt(where, row)
    if isinstance(prompt, str):
        return prompt
    names = {name: f"{GIVEN_AS}{name}" for name in WRITTEN}
    columns = {names.get(name, name): value for name, value in prompt.columns.items()}
    if len(columns) < len(prompt.columns):
        name = next(name for name in WRITTEN if name in row and f"{GIVEN_AS}{name}" in row)
        raise InputError(
            f'{where}: has "{name}", and "{GIVEN_AS}{name}", as which it would be kept. Rename or remove one.'
        )
    for name, value in columns.items():
        as_json(f'{where}: "{name}"', value)
    return replace(prompt, columns=columns)


def _unanswered(row: Row) -> bool:
    """Whether a pair of HH texts lacks a last answer, as a few in the published files do; left out and counted."""
    if key_of_pair(row):
        return False
    texts = (row.get("chosen"), row.get("rejected"))
    dialogues = [hh_turns(text) for text in texts if is_hh(text)]
    return any(turns[-1].role != "assistant" for turns in dialogues)


# ---- the kinds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader(Generic[R]):
    """Reads a data set as records of one kind; with `sample` those of the first and the last rows alone.

    Raises: InputError naming file, line and key, unless bad rows are to be dropped.
    """

    kind: str
    read: Callable[[str, Row], Read[R]]
    rows: Callable[[str | Path], Table] = read_rows
    without: tuple[str, ...] = ()
    """Keys of the kind that are not used."""

    def __call__(
        self,
        path: str | Path,
        bad_rows: BadRows = "error",
        sample: int | None = None,
        columns: Mapping[str, str] | None = None,
        shape: str | None = None,
    ) -> Records[R]:
        into = Into(self.kind, shape, columns or {}, self.without)
        return collect(path, self.rows(path), into, self.read, bad_rows, sample)


read_conversations: Reader[Conversation] = Reader("conversation", _conversation)
"""Dialogues to imitate, each with at least one answer by the assistant."""
read_preferences: Reader[Preference] = Reader("preference", _preferences)
"""Pairs of a better and a worse answer. Rows whose two answers are equal are dropped and counted."""
read_rankings: Reader[Ranking] = Reader("preference", _ranking, without=("margin",))
"""Lists of answers, best first, of which pairs are such of two."""
read_pairs: Reader[Preference] = Reader("preference", _preferences, without=("margin",))
"""Pairs whose margins are not used."""

read_prompts: Reader[Prompt] = Reader("prompt", _prompt)
"""Dialogues to be answered: `prompt`, a whole dialogue without its last answer, or what the two answers of a pair have
in common."""
read_kept_prompts: Reader[Prompt] = Reader("prompt", _kept_prompt)
"""Prompts of rows whose other keys are written out again beside an answer. Raises: InputError for one that JSON cannot
hold, or that is called as what is written beside it."""
read_texts: Reader[Text] = Reader("document", _text, read_documents)
"""Documents: the `text` of every row; in a .txt file what stands between <|endoftext|> lines, or, without any, between
blank lines."""
