"""`align data clean` and `decontaminate` from flags to files: what stays, what is kept aside, what is
told."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from align.ground.errors import InputError
from tests.conftest import make_data, read_rows, write_rows

STORY = (
    "The river runs through the old town, and people have built bridges over it for a thousand years. "
    "In spring its water rises to the steps of the market. Fishermen then leave their boats at home and mend nets, "
    "while children throw stones from the wall that the monks put up."
)
ROWS: list[dict[str, Any]] = [
    {"id": 1, "prompt": "Tell me of the river.", "completion": STORY, "meta": {"of": "x"}},
    {"id": 2, "prompt": "Tell me of the river.", "completion": STORY.replace(" old ", " very old ")},
    {"id": 3, "prompt": "Tell me  of the river.", "completion": STORY},
    {"id": 4, "prompt": "CafÃ©?", "completion": "Yes, a cafÃ© is open."},
    {"id": 5, "prompt": "Offers?", "completion": "buy now " * 60},
    {"id": 6, "prompt": "你好吗？", "completion": "我很好，谢谢。你今天想聊些什么？"},
]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return write_rows(Path("rows.jsonl"), ROWS).name


def restored(out: str) -> list[dict[str, Any]]:
    """The rows of the input, from what stays and what is kept aside."""
    aside = {line["number"]: line for line in read_rows(f"{out}.aside.jsonl")}
    stay = iter(read_rows(f"{out}.jsonl"))
    found: list[dict[str, Any]] = []
    while len(found) < json.loads(Path(f"{out}.report.json").read_text())["rows"]:
        line = aside.get(len(found))
        row = next(stay) if line is None or line["kept"] else line["row"]
        found.append(line["row"] if line else row)
    return found


def test_clean(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_data("clean", rows, "--out", "out.jsonl")
    told = capsys.readouterr().err
    kept = read_rows("out.jsonl")
    assert [row["id"] for row in kept] == [1, 4, 6] and kept[0] == ROWS[0]
    assert kept[1] == {"id": 4, "prompt": "Café?", "completion": "Yes, a café is open."}
    report = json.loads(Path("out.report.json").read_text())
    counts = {reason: found["rows"] for reason, found in report["removed"].items()}
    assert counts == {"near duplicate": 1, "exact duplicate": 1, "rule gopher_top_runs": 1}
    assert report["changed"]["text repaired"]["rows"] == 1 and report["left_as_they_are"] == ["meta"]
    assert report["settings"]["near"] == 0.8
    assert f"exact duplicate\n{' ' * 18}rows.jsonl:3: repeats rows.jsonl:1\n" in told
    assert max(len(line) for line in told.splitlines() if line.startswith("  ")) <= 80
    assert restored("out") == ROWS
    assert stat.S_IMODE(Path("out.aside.jsonl").stat().st_mode) == 0o600
    make_data("clean", rows, "--out", "again.jsonl", "--store", "other")
    for name in ("jsonl", "aside.jsonl", "report.json"):
        assert Path(f"again.{name}").read_bytes() == Path(f"out.{name}").read_bytes()
    off = ["--near", "null", "--exact", "false", "--repair", "false", "--rules", "none"]
    make_data("clean", rows, "--out", "raw.jsonl", *off)
    assert read_rows("raw.jsonl") == ROWS and not read_rows("raw.aside.jsonl")


def test_languages_and_word_lists(rows: str) -> None:
    make_data("clean", rows, "--out", "en.jsonl", "--languages", "en", "--near", "null")
    assert [row["id"] for row in read_rows("en.jsonl")] == [1, 2, 4, 6]  # the Chinese answer is too short to tell
    Path("words.txt").write_text("# names\ntown\n聊\n")
    make_data("clean", rows, "--out", "words.jsonl", "--word-lists", "words.txt")
    assert [row["id"] for row in read_rows("words.jsonl")] == [4]


def test_decontaminate(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("eval.jsonl").write_text(json.dumps({"question": "Tell me of the rivers!"}) + "\n")
    make_data("decontaminate", rows, "--against", "eval.jsonl", "--out", "out.jsonl")
    assert [row["id"] for row in read_rows("out.jsonl")] == [4, 5, 6]
    told = capsys.readouterr().err
    assert f"3  holds an evaluation question\n{' ' * 18}rows.jsonl:1: 94% like eval.jsonl:1\n" in told
    Path("eval.jsonl").write_text(json.dumps({"goal": "Tell me of the rivers!"}) + "\n")
    for key, name, said in (("prompt", "goal", False), ("completion", "nope", True)):
        columns = {"--columns.prompt": "goal", f"--columns.{key}": name}
        given = [word for pair in columns.items() for word in pair]
        make_data("decontaminate", rows, "--against", "eval.jsonl", "--out", f"{key}.jsonl", *given)
        assert len(read_rows(f"{key}.jsonl")) == 3 and (f'no row has "{name}"' in capsys.readouterr().err) == said


def test_mistakes_are_told(rows: str) -> None:
    Path("there.jsonl").touch()
    for said, message in (
        (["--out", "there.jsonl"], "exists already"),
        (["--out", "out.csv"], "End the name in .jsonl"),
        (["--out", "no/out.jsonl"], "there is no folder no"),
        (["--out", "a.jsonl", "--rules", "gofer"], "gofer is none"),
        (["--out", "a.jsonl", "--rules", "auto,no_words"], "auto stands alone"),
        (["--out", "a.jsonl", "--scrub", "names"], "--scrub"),
        (["--out", "a.jsonl", "--near", "2"], "--near: .* found 2"),
        (["--out", "a.jsonl", "--exact=maybe"], "--exact.*maybe"),
        (["--out", "a.jsonl", "--languages", "klingon"], "languages: klingon is not known"),
        (["--out", "a.jsonl", "--word-lists", "none.txt"], "there is no file none.txt"),
    ):
        with pytest.raises(InputError, match=message):
            make_data("clean", rows, *said)
    Path("broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    with pytest.raises(InputError, match=r"broken\.jsonl:2"):
        make_data("clean", "broken.jsonl", "--out", "b.jsonl")
    make_data("clean", "broken.jsonl", "--out", "b.jsonl", "--bad-rows", "drop")
    assert len(read_rows("b.jsonl")) == 1 and read_rows("b.aside.jsonl")[0]["row"] is None
    assert not list(Path().glob("a.*")) and not list(Path().glob(".tmp*"))


def test_another_number_is_another_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum with another number or sign stays, in the question or the answer; a document of another day repeats the
    first. Negative control: another word alone makes no other row."""
    monkeypatch.chdir(tmp_path)
    asked = STORY + " How many boats are there, 12 + 3 or more of them in all?"
    told = STORY + " So there are 15 boats."
    rows = [
        {"prompt": asked, "completion": told},
        {"prompt": asked.replace("12", "13"), "completion": told},
        {"prompt": asked, "completion": told.replace("15", "16")},
        {"prompt": asked.replace("+", "-"), "completion": told},
        {"prompt": asked.replace("in all", "in sum"), "completion": told.replace("15 boats", "15 ships")},
        {"text": STORY + " Printed on day 3."},
        {"text": STORY + " Printed on day 4."},
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_data("clean", "rows.jsonl", "--out", "out.jsonl", "--rules", "none")
    assert read_rows("out.jsonl") == [*rows[:4], rows[5]]


def call(name: str, key: str, **arguments: object) -> dict[str, Any]:
    said = {"role": "assistant", "tool_calls": [{"id": key, "function": {"name": name, "arguments": arguments}}]}
    return {"messages": [{"role": "user", "content": STORY}, said]}


def test_rows_that_differ_beside_their_words_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers in figures, which tool is called and with what, what tools there are, and which of several answers has
    which score. Negative control: calls that differ in their ids alone are one."""
    monkeypatch.chdir(tmp_path)
    one, other = STORY + " It is so.", "Nothing of that kind has been heard of in this town, as far as I can say."
    rows = [
        {"prompt": STORY, "answer": 7},
        {"prompt": STORY, "answer": 8},
        call("open", "c1", file="a"),
        call("delete", "c1", file="a"),
        call("wait", "c1", hours=1),
        call("wait", "c1", hours=2),
        {"tools": [{"name": "a"}], "prompt": STORY, "completion": other},
        {"tools": [{"name": "b"}], "prompt": STORY, "completion": other},
        {"prompt": STORY, "responses": [one, other], "scores": [2, 1]},
        {"prompt": STORY, "responses": [other, one], "scores": [2, 1]},
    ]
    again = [call("open", "c2", file="a"), rows[8] | {"id": 3}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *again]))
    make_data("clean", "rows.jsonl", "--out", "out.jsonl", "--rules", "none")
    assert read_rows("out.jsonl") == rows
    assert [line["reasons"] for line in read_rows("out.aside.jsonl")] == [["exact duplicate"]] * 2


def test_dialogues_that_are_written_as_text_are_cleaned(rows: str) -> None:
    """As CSV has them, in JSON or Python syntax; a row of which nothing changes keeps its text."""
    good, mail, bad = (
        [{"role": "user", "content": "你好吗？"}, {"role": "assistant", "content": said}]
        for said in ("It is open.", "写信给bob@corp.com吧。", "buy now " * 60)
    )
    given = [{"messages": json.dumps(good)}, {"messages": str(mail)}, {"messages": json.dumps(bad)}]
    Path(rows).write_text("".join(json.dumps(row) + "\n" for row in given))
    make_data("clean", rows, "--out", "out.jsonl")
    kept = read_rows("out.jsonl")
    assert kept[0] == given[0] and kept[1]["messages"][1]["content"] == "写信给[EMAIL]吧。" and len(kept) == 2
    assert restored("out") == given


def test_columns_deep_inside_are_cleaned(rows: str) -> None:
    given = {"q": {"text": "Where?"}, "a": {"of": {"us": "At bob@corp.com."}}}
    Path(rows).write_text(json.dumps(given) + "\n")
    named = ["--columns.prompt", "q.text", "--columns.completion", "a.of.us"]
    make_data("clean", rows, "--out", "out.jsonl", *named)
    assert read_rows("out.jsonl") == [{"q": {"text": "Where?"}, "a": {"of": {"us": "At [EMAIL]."}}}]


@pytest.mark.parametrize("key", ["label", "Label", "good"])
def test_what_is_labelled_bad_is_not_judged(rows: str, key: str) -> None:
    """By whatever name the file has the label. Negative control: what is labelled good is."""
    answer = {"prompt": "Offers?", "completion": "buy now " * 60}
    given = [answer | {key: False}, answer | {key: True}, ROWS[0] | {key: True}]
    Path(rows).write_text("".join(json.dumps(row) + "\n" for row in given))
    make_data("clean", rows, "--out", "out.jsonl", *(["--columns.label", key] * (key == "good")))
    assert read_rows("out.jsonl") == [given[0], given[2]]


def test_a_file_that_is_given_twice_repeats_itself(rows: str) -> None:
    Path("rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    make_data("clean", rows, rows, "--out", "out.jsonl", "--near", "null")
    assert [line["reasons"] for line in read_rows("out.aside.jsonl")] == [["exact duplicate"]]


def test_what_is_not_cleaned_is_named(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, where others are; a file without any text that is known is refused, by decontaminate too."""
    make_data("clean", rows, "--out", "out.jsonl", "--columns.prompt", "nope")
    assert '\nleft as they are: meta\nno row has "nope" (columns.prompt)\n' in capsys.readouterr().err
    Path("other.jsonl").write_text('{"sentence": "Hi", "n": 3}\n')
    for command in (["clean"], ["decontaminate", "--against", rows]):
        for rehearsed in ([], ["--dry-run"]):
            with pytest.raises(InputError, match=r"found (sentence|sentence, n)\. columns.prompt NAME"):
                make_data(*command, "--out", "a.jsonl", "other.jsonl", *rehearsed)
    make_data("clean", rows, "--dry-run", "--columns.prompt", "nope", "--exact", "false")
    assert 'no row has "nope" (columns.prompt)' in "".join(capsys.readouterr())
    make_data("clean", "other.jsonl", "--out", "b.jsonl", "--columns.completion", "sentence")


def test_half_a_pair_of_surrogates_comes_back(rows: str) -> None:
    """In what is kept aside, and in a key that is not cleaned."""
    given = {"prompt": "a \ud83d", "completion": "It is open.", "meta": "\ud83d"}
    Path(rows).write_text(json.dumps(given) + "\n")
    make_data("clean", rows, "--out", "out.jsonl")
    assert restored("out") == [given] and read_rows("out.jsonl") == [given | {"prompt": "a \ufffd"}]


def test_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that JSON cannot hold is named, also where the file of originals could have been written."""
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    first = {"prompt": "a", "completion": "Write to bob@corp.com.", "when": None}
    table = pa.Table.from_pylist([first, {"prompt": "b", "completion": "c", "when": datetime.datetime(2020, 1, 1)}])
    pq.write_table(table, "rows.parquet")
    with pytest.raises(InputError, match=r"rows\.parquet row 2: the row holds what JSON cannot"):
        make_data("clean", "rows.parquet", "--out", "out.jsonl")
    assert [path.name for path in Path().iterdir() if path.name != ".align"] == ["rows.parquet"]


def test_a_missing_library_is_named(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from align.cleaning import repair

    repair._settings.cache_clear()
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(InputError, match=r"needs ftfy, which is not installed: pip install 'align-rlhf\[clean\]'"):
        make_data("clean", rows, "--out", "out.jsonl")
    make_data("clean", rows, "--out", "out.jsonl", "--repair", "false")
