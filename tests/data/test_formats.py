"""Rows of every accepted shape become the records they mean; every bad row is an error that says where and what to
do."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from align.data.formats import (
    data_digest,
    read_conversations,
    read_kept_prompts,
    read_preferences,
    read_prompts,
    read_texts,
)
from align.data.records import Conversation, Message, Preference, Prompt, Text
from align.ground.errors import InputError

HI, HELLO, WHAT = Message("user", "Hi"), Message("assistant", "Hello!"), Message("assistant", "What?")
BE_KIND = Message("system", "Be kind.")
HH = "\n\nHuman: Hi\n\nAssistant:"
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Rows into a file of the working folder, so that messages are short."""
    monkeypatch.chdir(tmp_path)

    def write(*rows: Any, name: str = "rows.jsonl") -> str:
        Path(name).write_text(
            "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
        return name

    return write


def fails(read: Callable[[str], object], path: str) -> str:
    with pytest.raises(InputError) as error:
        read(path)
    return str(error.value)


# ---- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello!"},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"prompt": "Hi", "completion": CHAT[1]},
        {"messages": CHAT},
        {"conversations": SHAREGPT},
        {"conversations": str(SHAREGPT)},  # Python syntax, as some published files hold it
        {"conversations": json.dumps(SHAREGPT)},
        {"messages": "\n\nHuman: Hi\n\nAssistant: Hello!"},
    ],
    ids=str,
)
def test_every_conversation_shape_means_the_same(write: Callable[..., str], row: dict[str, Any]) -> None:
    assert read_conversations(write(row)) == [Conversation((HI, HELLO))]
    assert read_conversations(write({**row, "system": "Be kind."})) == [Conversation((BE_KIND, HI, HELLO))]
    assert read_conversations(write(row)) != [Conversation((HI, WHAT))]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": {"role": "assistant", "content": "What?"}},
        {"conversations": SHAREGPT[:1], "chosen": "Hello!", "rejected": "What?"},
        # answers repeat the prompt
        {"prompt": "Hi", "chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "What?"}]},
        {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "What?"}]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
    ],
    ids=str,
)
def test_every_preference_shape_means_the_same(write: Callable[..., str], row: dict[str, Any]) -> None:
    assert read_preferences(write(row)) == [Preference((HI,), (HELLO,), (WHAT,))]
    assert read_preferences(write({**row, "system": "Be kind.", "margin": 2})) == [
        Preference((BE_KIND, HI), (HELLO,), (WHAT,), 2.0)
    ]
    assert read_preferences(write({**row, "chosen": row["rejected"], "rejected": row["chosen"]})) == [
        Preference((HI,), (WHAT,), (HELLO,))
    ]


def test_hh_prompt_is_what_both_dialogues_begin_with(write: Callable[..., str]) -> None:
    """The common turns; where a person's turn differs, back to the answer before it."""
    start = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Joke?"
    (pair,) = read_preferences(
        write({"chosen": start + "\n\nAssistant: No.\nSorry.", "rejected": start + "\n\nAssistant: Yes."})
    )
    assert pair.prompt == (HI, HELLO, Message("user", "Joke?"))
    assert (pair.chosen, pair.rejected) == ((Message("assistant", "No.\nSorry."),), (Message("assistant", "Yes."),))
    (pair,) = read_preferences(
        write(
            {
                "chosen": start + "\n\nAssistant: No.",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Bye\n\nAssistant: Bye.",
            }
        )
    )
    assert pair.prompt == (HI,) and pair.chosen[0] == pair.rejected[0] == HELLO


def test_prompts_keep_other_columns_for_the_judge(write: Callable[..., str]) -> None:
    rows = [
        {"prompt": "Hi", "answer": "7"},
        {"messages": CHAT},
        {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "What?"}]},
    ]
    first, second, third = read_prompts(write(*rows))
    assert first == Prompt((HI,), {"answer": "7"})
    assert second.messages == third.messages == (HI,) and set(third.columns) == {"chosen", "rejected"}


def test_margin(write: Callable[..., str]) -> None:
    row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
    assert [p.margin for p in read_preferences(write(row, {**row, "margin": None}, {**row, "margin": 0.5}))] == [
        None,
        None,
        0.5,
    ]
    expected = '"margin" is {}; expected a finite number, or no margin.'
    assert fails(read_preferences, write({**row, "margin": "big"})) == "rows.jsonl:1: " + expected.format(
        'the text "big"'
    )
    assert fails(read_preferences, write({**row, "margin": True})) == "rows.jsonl:1: " + expected.format("true")


# ---- files -----------------------------------------------------------------------------------------------------------


def test_every_file_format_gives_the_same_records(write: Callable[..., str], tmp_path: Path) -> None:
    """The second prompt holds what a format could break: a comma, a quote, a line break, U+2028, another script."""
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset

    rows = [{"prompt": "Hi", "completion": "Hello!"}, {"prompt": 'a, "b"\nc\u2028d 好', "completion": "x"}]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    cells = [
        ", ".join(f'"{v.replace(chr(34), chr(34) * 2)}"' for v in row.values()).replace('", "', '","') + "\n"
        for row in rows
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "rows.parquet")
    Dataset.from_list(rows).save_to_disk("folder")
    Path("rows.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode()))
    paths = [
        write(lines[0], "\n", lines[1]),
        write(*lines, name="lines.json"),
        write(json.dumps(rows, indent=2), name="rows.json"),
        write("\ufeffprompt,completion\n", *cells, name="rows.csv"),
        "rows.jsonl.gz",
        "rows.parquet",
        "folder",
    ]
    expected = [Conversation((Message("user", r["prompt"]), Message("assistant", r["completion"]))) for r in rows]
    for path in paths:
        assert read_conversations(path) == expected, path
    where = [[record.where for record in read_conversations(path)][1] for path in paths]
    assert where == [
        "rows.jsonl:3",
        "lines.json:2",
        "rows.json row 2",
        "rows.csv:3",
        "rows.jsonl.gz:2",
        "rows.parquet row 2",
        "folder row 2",
    ]


def test_documents(write: Callable[..., str]) -> None:
    assert read_texts(write({"text": "a\n\nb"}, {"text": " "})) == [Text("a\n\nb")]
    assert read_texts(write("a\nb\n\n\nc\n", name="x.txt")) == [Text("a\nb"), Text("c")]
    marked = read_texts(write("a\n\nb\n<|endoftext|>\n\nc\n<|endoftext|>\n", name="x.txt"))
    assert marked == [Text("a\n\nb"), Text("c")]  # blank lines belong to the text where marks part documents
    assert read_texts(write("a\n\nb\n", name="x.txt"))[1].where == "x.txt:3"
    assert read_texts(write({"text": "a"}, {"text": ""})).dropped == {"empty texts": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"prompt": "Hi", "completion": "x"}\n{"prompt": \n',
            "rows.jsonl:2: not JSON: Expecting value (column 11). Expected one object on the line.",
        ),
        ("\n[1]\n", 'rows.jsonl row 1: found 1; expected an object such as {"prompt": …}.'),
        ('{"prompt": NaN}\n', "rows.jsonl:1: not JSON: NaN is no number. Expected one object on the line."),
        (
            f'{{"prompt": {"9" * 5000}}}\n',
            "rows.jsonl:1: not JSON: it holds a whole number of more than 4,300 digits. "
            "Expected one object on the line.",
        ),
        ("", "rows.jsonl: the data set is empty. Expected at least one conversation."),
        (b'{"prompt": "\xff"}', "rows.jsonl:1: byte 0xff is not UTF-8. Convert the file to UTF-8."),
    ],
)
def test_malformed_jsonl(write: Callable[..., str], text: str | bytes, message: str) -> None:
    path = Path(write())
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert fails(read_conversations, str(path)) == message


def test_other_malformed_files(write: Callable[..., str]) -> None:
    at = "Check the path; in a recipe it is relative to the recipe."
    assert fails(read_conversations, "none.jsonl") == f"none.jsonl: there is no such file. {at}"
    assert fails(read_texts, "none.txt") == f"none.txt: there is no such file. {at}"
    assert fails(data_digest, "none.txt") == f"none.txt: there is no such file. {at}"
    assert fails(read_conversations, write('[{"a": 1},\n 2', name="x.json")).startswith(
        "x.json:2: not JSON: Expecting ',' delimiter"
    )
    assert (
        fails(read_conversations, write('"a"', name="x.json"))
        == 'x.json: found the text "a"; expected a list of objects.'
    )
    assert fails(read_conversations, write("prompt,completion\na,b,c\n", name="x.csv")) == (
        "x.csv:2: more fields than the header names, 3 for 2 (prompt, completion). "
        "Here each comma begins a new field: quote fields that hold a comma."
    )
    assert fails(read_conversations, write("prompt;completion\na\n", name="x.csv")) == (
        "x.csv:2: fewer fields than the header names, 1 for 2 (prompt, completion). "
        "Here each semicolon begins a new field: quote fields that hold a semicolon."
    )
    headless = (
        "The first line looks like a row: if the file has no header, write a line above it that names prompt and "
    )
    asked = "Was ist die Hauptstadt von Deutschland?;Berlin\nUnd von Italien?;Rom\n"
    assert headless + "completion. " in fails(read_conversations, write(asked, name="x.csv"))
    for others in ("question_text;reply_text\na;b\n", "Frage;Antwort auf die Frage\na;b\n"):  # negative controls
        assert "looks like a row" not in fails(read_conversations, write(others, name="x.csv"))
    assert "looks like a row" not in fails(read_conversations, write('{"What is it?": "a"}\n'))
    assert fails(read_conversations, write('prompt,completion\na,"b\n', name="x.csv")).startswith(
        "x.csv:2: not CSV: unexpected end of data."
    )
    assert fails(read_conversations, write("x", name="x.parquet")).startswith("x.parquet: not a Parquet file: ")
    assert fails(read_conversations, write("x", name="x.pdf")) == (
        "x.pdf: cannot tell the format from its name. Expected .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, "
        ".tar (each also with .gz, .bz2, .xz, .zst), or a folder of `datasets`."
    )
    assert fails(read_conversations, write("x", name="x.txt")).endswith(
        "A .txt file holds texts, for pretrain with `learn: all` alone."
    )


def test_dataset_folders_that_hold_no_one_data_set(write: Callable[..., str]) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list([{"text": "a"}]), "test": Dataset.from_list([{"text": "b"}])}).save_to_disk(
        "splits"
    )
    assert (
        fails(read_texts, "splits") == "splits: holds the splits train, test; name one of them, such as splits/train."
    )
    assert read_texts("splits/train") == [Text("a")]
    assert fails(read_texts, ".") == (
        ".: a folder with the splits test, train. Expected a file, a folder of shards of one kind, one that `datasets` "
        "wrote with save_to_disk, or a pattern for the files to read, such as *test*."
    )


def test_data_digest_follows_the_content(write: Callable[..., str]) -> None:
    from datasets import Dataset

    assert (
        data_digest(write("a", name="x.jsonl"))
        == data_digest(write("a", name="y.jsonl"))
        != data_digest(write("b", name="z.jsonl"))
    )
    digests = set()
    for i, text in enumerate(["a", "b"]):
        Dataset.from_list([{"text": text}]).save_to_disk(f"folder{i}")
        digests.add(data_digest(f"folder{i}"))
    assert len(digests) == 2


# ---- what a message may say ------------------------------------------------------------------------------------------

ADD = {"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def said(write: Callable[..., str], *messages: dict[str, Any], **row: Any) -> Conversation:
    return read_conversations(write({"messages": [*messages], **row}))[0]


def test_parts_of_text_are_joined(write: Callable[..., str]) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]
    assert said(write, CHAT[0], {"role": "assistant", "content": parts}).messages == (HI, HELLO)
    image = [parts[0], {"type": "image_url", "image_url": {"url": "x.png"}}]
    assert fails(read_conversations, write({"messages": [{"role": "user", "content": image}, CHAT[1]]})) == (
        'rows.jsonl:1: message 1 of "messages": part 2 of content is of type "image_url"; only parts of type text can '
        "be rendered. "
        "Remove the part or the row."
    )
    for part, message in (
        # Arrow fills in
        (
            {"type": "image_url", "text": "", "image_url": {"url": "x"}},
            'is of type "image_url"; only parts of type text',
        ),
        ({"type": "image", "text": "cap"}, 'is of type "image"; only parts of type text'),
        ({"type": "thinking", "text": "hm"}, 'is of type "thinking"; only parts of type text'),
        ({"type": "text", "text": "a", "weight": 0}, 'has "weight", which is not read of a part'),
        ({"type": "text", "text": "a", "train": False}, 'has "train", which is not read of a part'),
    ):
        said_by = [{"role": "user", "content": [parts[0], part]}, CHAT[1]]
        assert message in fails(read_conversations, write({"messages": said_by}))
    filled = [{"type": "output_text", "text": "Hello!", "image_url": None, "annotations": [], "weight": 1}]
    assert said(write, CHAT[0], {"role": "assistant", "content": filled}).messages == (HI, HELLO)
    assert 'has "images", but only text can be rendered' in fails(
        read_conversations, write({"messages": CHAT, "images": ["x.png"]})
    )


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"loss": False}], ids=str)
def test_what_is_not_to_be_learnt(write: Callable[..., str], mark: dict[str, Any]) -> None:
    """OpenAI's weight 0 and axolotl's train false; a dialogue without any other answer is left out and counted."""
    wrong = {**CHAT[1], **mark}
    assert [m.learn for m in said(write, CHAT[0], wrong, *CHAT).messages] == [True, False, True, True]
    assert all(m.learn for m in said(write, CHAT[0], {**CHAT[1], "weight": 1, "train": True}).messages)
    assert read_conversations(write({"messages": CHAT}, {"messages": [CHAT[0], wrong]})).dropped == {
        "dialogues without an answer to learn": 1
    }
    assert "weight is 0.5; expected 0 or 1" in fails(
        read_conversations, write({"messages": [CHAT[0], {**CHAT[1], "weight": 0.5}]})
    )


def test_tools_and_calls(write: Callable[..., str]) -> None:
    """Arguments as an object or as its JSON, OpenAI's older function_call, ShareGPT's roles, schemas as a list or as
    its JSON."""
    result = {"role": "tool", "tool_call_id": "1", "name": "add", "content": "8"}
    shapes: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": [ADD]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 3}'}}]},
        {"role": "assistant", "content": "", "function_call": {"name": "add", "arguments": '{"a": 3}'}},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 3}}'},
    ]
    for shape in shapes:
        record = said(write, CHAT[0], shape, result, CHAT[1], tools=json.dumps([TOOL]))
        call = record.messages[1]
        assert (call.role, call.content, json.loads(call.tool_calls)) == ("assistant", "", [ADD])
        assert record.messages[2] == Message("tool", "8", tool_call_id="1", name="add")
        assert json.loads(record.tools) == [TOOL] == json.loads(said(write, *CHAT, tools=[TOOL["function"]]).tools)
        assert record.messages[1].plain() == {"role": "assistant", "content": "", "tool_calls": [ADD]}
    assert said(write, *CHAT, tools=[]).tools == said(write, *CHAT, tools="").tools == ""
    assert '"tools" holds the text "add"' in fails(read_conversations, write({"messages": CHAT, "tools": ["add"]}))
    (prompt,) = read_prompts(write({"prompt": "Hi", "tools": [TOOL]}))
    assert prompt.row() == {"prompt": "Hi", "tools": [TOOL]} and "tools" in prompt.columns
    for given in ("Hi", CHAT[:1]):  # what is written keeps its form, and is read as the same prompt
        (prompt,) = read_prompts(write({"prompt": given}))
        assert prompt.row() == {"prompt": given} and read_prompts(write(prompt.row())) == [prompt]
    (pair,) = read_preferences(write({"prompt": "Hi", "chosen": "a", "rejected": "b", "tools": [TOOL]}))
    assert json.loads(pair.tools) == [TOOL]


def test_two_names_of_one_part_of_a_message(write: Callable[..., str]) -> None:
    """Alike, or one of them filled in: read once. Another: neither is dropped."""
    both = {**CHAT[1], "from": "gpt", "value": "Hello!"}
    filled = {"role": None, "content": None, **SHAREGPT[1]}
    assert said(write, CHAT[0], both).messages == said(write, SHAREGPT[0], filled).messages == (HI, HELLO)
    assert said(write, CHAT[0], {**CHAT[1], "from": None, "value": None}).messages == (HI, HELLO)
    for wrong, names in (({**both, "value": "B"}, "content and value"), ({**both, "from": "human"}, "role and from")):
        assert f"has {names}, which differ. Keep one of them." in fails(
            read_conversations, write({"messages": [CHAT[0], wrong]})
        )


SET, CALL = "{'a': {1, 2}}", {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{'a': 1}"}}]}


@pytest.mark.parametrize(
    "row",
    [
        *(
            {"messages": str([CHAT[0], {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": a}}]}])}
            for a in (SET, "{(1, 2): 3}")
        ),
        {"messages": [CHAT[0], {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": "{'a': b''}"}}]}]},
        {"messages": [CHAT[0], {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": NaN}'}}]}]},
        {"messages": [CHAT[0], {**CALL, "tool_calls": [{"function": {"name": "f", "args": {"a": 1}}}]}]},
        {"messages": CHAT, "tools": "[{'name': 'f', 'parameters': {1, 2}}]"},
        {"messages": "[{'role': b'user', 'content': 'a'}]"},
        {"messages": "[{'role': {1}, 'content': 'a'}]"},
        {"messages": "[{'role': 'user', 'content': 'a', b'x': 1}]"},
        {"messages": "[{1: 2}]"},
        {"messages": "[{'role': 'user', 'content': [{'type': b'q', 'text': 'a'}]}]"},
        {"messages": "\n\nHuman: \ud800\n\nAssistant: b"},
    ],
    ids=ascii,
)
def test_what_json_cannot_hold(write: Callable[..., str], row: dict[str, Any]) -> None:
    """Python syntax spells more than JSON: refused in one sentence, or left out, and never written down as something
    else."""
    good = {"messages": [CHAT[0], CALL]}
    assert fails(read_conversations, write(good, row)).startswith("rows.jsonl:2: ")
    assert len(records := read_conversations(write(good, row), "drop")) == 1 and records.dropped.total() == 1


def test_cells_of_parquet_that_json_cannot_hold(write: Callable[..., str]) -> None:
    import pyarrow
    import pyarrow.parquet

    for value in (datetime(2026, 1, 2), date(2026, 1, 2), Decimal("1.5"), b"x", math.nan):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": "a", "tool_calls": None},
                    {"role": "assistant", "content": "", "tool_calls": [c]},
                ]
            }
            for c in [{"function": {"name": "f", "arguments": {"a": value}}}]
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "rows.parquet")
        assert "rows.parquet row 1" in fails(read_conversations, "rows.parquet")
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([{"prompt": "a", "when": value}, {"prompt": "b"}]), "rows.parquet"
        )
        assert len(read_prompts("rows.parquet")) == 2
        assert fails(read_kept_prompts, "rows.parquet").startswith('rows.parquet row 1: "when" holds what JSON cannot')
        assert [p.messages[0].content for p in read_kept_prompts("rows.parquet", "drop")] == ["b"]


def test_columns_that_are_written_beside_an_answer(write: Callable[..., str]) -> None:
    """They are kept beside the answer to come, not overwritten by it."""
    row = {"prompt": "Hi", "completion": "x", "ended": 1, "id": 3}
    assert read_kept_prompts(write(row))[0].columns == {"given_completion": "x", "given_ended": 1, "id": 3}
    assert 'has "completion", and "given_completion"' in fails(
        read_kept_prompts, write({**row, "given_completion": "y"})
    )


def test_thoughts_and_names(write: Callable[..., str]) -> None:
    for key in ("reasoning_content", "thinking", "reasoning"):
        assert said(write, CHAT[0], {**CHAT[1], key: "Hm."}).messages[1] == Message(
            "assistant", "Hello!", reasoning="Hm."
        )
    assert said(write, {**CHAT[0], "name": "Ann"}, CHAT[1]).messages[0].name == "Ann"
    assert said(write, {"role": "developer", "content": "x"}, *CHAT).messages[0].role == "developer"
    two = {**CHAT[1], "reasoning": "a", "thinking": "b"}
    assert "has several of reasoning_content, thinking, reasoning" in fails(
        read_conversations, write({"messages": [CHAT[0], two]})
    )
    assert "is by the user, but has thoughts" in fails(
        read_conversations, write({"messages": [{**CHAT[0], "thinking": "a"}, CHAT[1]]})
    )


def test_a_key_that_no_message_has(write: Callable[..., str]) -> None:
    """A key that says something is an error; one without a value says nothing."""
    assert said(write, CHAT[0], {**CHAT[1], "refusal": None, "annotations": [], "audio": ""}).messages == (HI, HELLO)
    assert fails(read_conversations, write({"messages": [CHAT[0], {**CHAT[1], "refusal": "No."}]})).startswith(
        'rows.jsonl:1: message 2 of "messages" has "refusal", which is none of the keys that a message may have '
        "(content, from, "
    )


# ---- bad rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "Hi"},
            '"completion" is missing. A conversation needs prompt and completion (or messages); found prompt.',
        ),
        (
            {"problem": "Hi", "solution": "x"},
            '"prompt" and "completion" are missing. A conversation needs prompt and completion (or messages); found '
            "problem, solution. "
            "Rename problem to prompt and solution to completion, or say so: --columns.prompt problem "
            "--columns.completion solution.",
        ),
        (
            {"q": "Hi", "a b": "x"},
            '"prompt" and "completion" are missing. A conversation needs prompt and completion (or messages); found '
            "q, a b. Where q and a b are prompt and completion, say so: --columns.prompt q --columns.completion 'a b'.",
        ),
        (
            {"id": 1, "q": "Hi", "a": "x"},
            '"prompt" and "completion" are missing. A conversation needs prompt and completion (or messages); found '
            "id, q, a. Rename q to prompt and a to completion, or say so: --columns.prompt q --columns.completion a.",
        ),
        ({"prompt": "Hi", "completion": " \n"}, '"completion" is empty. Remove the row, or give it text.'),
        ({"prompt": "Hi", "completion": 3}, '"completion" is 3; expected text or a list of messages.'),
        ({"prompt": None, "completion": "x"}, '"prompt" is null; expected text or a list of messages.'),
        (
            {"messages": CHAT[:1]},
            '"messages" has no assistant message. A conversation needs at least one, which is what is learnt.',
        ),
        ({"messages": []}, '"messages" is an empty list. Expected at least one message.'),
        ({"messages": "Hi"}, '"messages" is the text "Hi"; expected a list of messages.'),
        ({"messages": ["Hi"]}, 'message 1 of "messages" is the text "Hi"; expected an object with role and content.'),
        (
            {"messages": [{"role": "user"}]},
            'message 1 of "messages" needs role and content (or from and value); found role.',
        ),
        (
            {"messages": [CHAT[0], {"role": "bot", "content": "x"}]},
            'message 2 of "messages" has the role "bot"; expected system, developer, user, assistant or tool (or '
            "human, gpt).",
        ),
        (
            {"messages": [{"role": "user", "content": ["Hi"]}]},
            'message 1 of "messages": content is a list; expected text.',
        ),
        (
            {"messages": [CHAT[0], {"role": "assistant", "content": ""}]},
            'an assistant message in "messages" is empty. Remove the row, or give it text.',
        ),
        (
            {"messages": [{**CHAT[1], "tool_calls": [1]}]},
            'message 1 of "messages" has the tool call 1; expected {"function": {"name", "arguments"}}.',
        ),
        (
            {"system": "x", "messages": [{"role": "system", "content": "y"}, *CHAT]},
            '"system" is set, and "messages" opens with a system message too. Keep one of them.',
        ),
        (
            {"prompt": "Hi", "completion": "\ud800"},
            "\"completion\" holds half a surrogate pair ('\\ud800'), which is no text. Repair or remove the row.",
        ),
    ],
)
def test_bad_conversations(write: Callable[..., str], row: dict[str, Any], message: str) -> None:
    good = {"prompt": "Hi", "completion": "Hello!"}
    assert fails(read_conversations, write(good, row)) == f"rows.jsonl:2: {message}"
    assert len(read_conversations(write(good, good))) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "Hi", "chosen": "x"},
            '"rejected" is missing. A preference needs prompt, chosen and rejected; found prompt, chosen.',
        ),
        (
            {"chosen": "x", "rejected": "y"},
            '"prompt" is missing. A preference needs prompt, chosen and rejected; found chosen, rejected.',
        ),
        ({"prompt": "Hi", "chosen": "", "rejected": "y"}, '"chosen" is empty. Remove the row, or give it text.'),
        ({"prompt": "Hi", "chosen": "x", "rejected": ""}, '"rejected" is empty. Remove the row, or give it text.'),
        (
            {"prompt": "Hi", "chosen": [{"role": "user", "content": "Ho"}, CHAT[1]], "rejected": "y"},
            '"chosen" opens with a user message that is not in the prompt. Expected an assistant message.',
        ),
        (
            {"chosen": CHAT, "rejected": [{"role": "user", "content": "Ho"}, CHAT[1]]},
            '"chosen" and "rejected" have no prompt in common. Begin both with the same turns, or add a prompt.',
        ),
        (
            {"prompt": HH, "chosen": f"{HH} Hello!", "rejected": "\n\nHuman: Bye\n\nAssistant: What?"},
            '"rejected" opens with a user message that is not in the prompt. Expected an assistant message.',
        ),
    ],
)
def test_bad_preferences(write: Callable[..., str], row: dict[str, Any], message: str) -> None:
    assert fails(read_preferences, write(row)) == f"rows.jsonl:1: {message}"


def test_what_is_left_out_is_counted(write: Callable[..., str]) -> None:
    """Equal answers teach nothing; a few published HH dialogues end without an answer. Neither passes silently."""
    same = {"prompt": "Hi", "chosen": "x", "rejected": "x"}
    trailing = {"prompt": CHAT[:1], **{k: [CHAT[1], {"role": "user", "content": k}] for k in ("chosen", "rejected")}}
    whole = {k: [*CHAT, {"role": "user", "content": k}] for k in ("chosen", "rejected")}
    records = read_preferences(write({"prompt": "Hi", "chosen": "x", "rejected": "y"}, trailing, whole))
    # what follows the answers is never learnt
    assert len(records) == 1 and records.dropped == {"pairs whose chosen equals rejected": 2}
    unfinished = {"chosen": "\n\nHuman: Hi\n\nAssistant:", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}
    records = read_preferences(write({"prompt": "Hi", "chosen": "x", "rejected": "y"}, same, same, unfinished))
    assert len(records) == 1
    assert records.dropped == {"pairs whose chosen equals rejected": 2, "dialogues without a last answer": 1}
    assert str(records) == (
        "1 records from JSON lines (prompt, chosen, rejected); left out: 2 pairs whose chosen equals rejected, 1 "
        "dialogues without a last answer"
    )
    assert fails(read_preferences, write(same)) == (
        "rows.jsonl: every row was left out (1 pairs whose chosen equals rejected). Expected at least one preference "
        "to work with."
    )


def test_an_answer_inside_the_prompt_is_read_and_not_learnt(write: Callable[..., Path]) -> None:
    """prompt/completion rows learn the completion alone, whole dialogues every answer."""
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "More"},
    ]
    (record,) = read_conversations(write({"prompt": prompt, "completion": "No."}))
    assert record.prompt == 3
    (whole,) = read_conversations(write({"messages": [*prompt, {"role": "assistant", "content": "No."}]}))
    assert whole.prompt == 0
