"""`align data …` from the command line to files and text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from align.cli import data
from align.cli.command import dispatch
from align.data.files.sources import data_digest
from align.ground import progress
from align.ground.errors import InputError
from align.inputs.fit import Data
from align.stage import question
from tests.conftest import make_data, read_rows, write_rows

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "data" / "tiny-base")
ROWS = [{"ask": f"What is {i}?", "completion": f"{i}."} for i in range(20)]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return write_rows(Path("rows.jsonl"), ROWS).name


def test_inspect(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["data", "inspect", rows, "--columns.prompt", "ask", "--json", "--base", TINY])
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == found["prompts"] == 20 and found["kind"] == "sft" and found["duplicates"] == 0
    assert found["tokens"]["max"] > found["tokens that count"]["max"] > 0
    with pytest.raises(InputError, match="found ask, completion"):  # negative control: without the column
        dispatch(["data", "inspect", rows])
    dispatch(["data", "inspect", rows, "--columns.prompt", "ask"])
    assert "read as 20 of sft" in capsys.readouterr().out


def test_inspect_tells_what_takes_its_time(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, in its order, of a base; without one nothing is loaded (the control)."""
    titles: list[str] = []
    begin = progress._Teller.begin

    def noted(self: progress._Teller, work: progress.Work) -> None:
        begin(self, work)
        titles.append(work.title)

    monkeypatch.setattr(progress._Teller, "begin", noted)
    words = ["data", "inspect", rows, "--columns.prompt", "ask"]
    dispatch(words)
    plain = [*dict.fromkeys(titles)]
    assert plain == ["data inspect", f"data inspect: reading {Path(rows).name}"]
    titles.clear()
    dispatch([*words, "--base", TINY])
    loads = [title for title in dict.fromkeys(titles) if title not in plain and "hashing" not in title]
    parts = ("loading libraries", "loading the tokenizer", "rendering")
    assert loads == [f"data inspect: {what}" for what in parts]


def test_convert_split_and_mix(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_data("convert", rows, "--out", "ours.jsonl", "--columns.prompt", "ask")
    assert read_rows("ours.jsonl")[0]["messages"][1] == {"role": "assistant", "content": "0."}
    make_data("split", "ours.jsonl", "--out", "train.jsonl", "--fraction", "0.3")
    train, held = read_rows("train.jsonl"), read_rows("train.other.jsonl")
    assert sorted(map(str, train + held)) == sorted(map(str, read_rows("ours.jsonl"))) and 0 < len(held) < 20
    make_data("split", "ours.jsonl", "--out", "held.jsonl", "--fraction", "0.3", "--side", "held")
    assert read_rows("held.jsonl") == held and read_rows("held.other.jsonl") == train
    shares = ["train.jsonl=2", "held.jsonl=1", "--rows", "6"]
    make_data("mix", *shares, "--out", "mixed.jsonl")
    mixed = read_rows("mixed.jsonl")
    assert sum(row in held for row in mixed) == 2 and sum(row in train for row in mixed) == 4
    make_data("mix", *shares, "--out", "again.jsonl", "--store", "other")
    assert read_rows("again.jsonl") == mixed
    make_data("mix", *shares, "--out", "other.jsonl", "--seed", "1")
    assert read_rows("other.jsonl") != mixed


def test_what_counts_is_marked(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As transformers renders it, with marks around the answer and its end of turn."""
    from transformers import AutoTokenizer

    said = ["data", "show", rows, "--columns.prompt", "ask", "--mask", "--base", TINY, "--rows", "1"]
    dispatch(said)
    shown, told = capsys.readouterr()
    assert re.search(r"the first 1 of \d+ records; --rows shows more\n", told)
    dispatch([*said[:-1], "1000"])
    assert "--rows shows more" not in capsys.readouterr().err, "the control"
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert "«" in shown and shown.index("«") < shown.index("0.") < shown.index("»")
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": "What is 0?"}, {"role": "assistant", "content": "0."}]
        theirs = tokenizer.apply_chat_template(chat, tokenize=False)
        assert theirs.startswith(shown.split("\n", 1)[1].replace("«", "").replace("»", "").strip()[:20])
    dispatch([*said, "--html", "page.html"])
    page = Path("page.html").read_text()
    assert page.count("<mark>") == 2 and 'dir="auto"' in page and "0." in page.split("<mark>")[2].split("</mark>")[0]


def test_answers_of_a_pair_are_called_what_they_are(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the terminal and on a page, the one of the data behind its name. Negative control: one answer has no name."""
    pair = {"prompt": "Why?", "chosen": "Because good.", "rejected": "So bad."}
    write_rows(Path("pairs.jsonl"), [pair])
    dispatch([*["data", "show", "pairs.jsonl", "--mask", "--base"], TINY])
    chosen, rejected = capsys.readouterr().out.partition("\nchosen:\n")[2].split("\nrejected:\n")
    assert "good" in chosen and "bad" not in chosen and "bad" in rejected and "good" not in rejected
    dispatch([*["data", "show", "pairs.jsonl", "--html", "page.html", "--mask", "--base"], TINY])
    chosen, rejected = Path("page.html").read_text().partition("<h2>chosen</h2>")[2].split("<h2>rejected</h2>")
    assert "good" in chosen and "bad" not in chosen and "bad" in rejected
    capsys.readouterr()
    dispatch(["data", "show", rows, "--columns.prompt", "ask", "--mask", "--base", TINY, "--rows", "1"])
    assert "chosen" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "show", "rows.jsonl", "--n", "1"], "unrecognized arguments: --n 1; did you mean --rows?"),
        (["data", "inspct", "x"], "did you mean data inspect"),
        (["data", "inspect", "rows.jsonl", "--shape", "nectr"], "nectr is not known.*pku_saferlhf.*nectar"),
        (["data", "show", "rows.jsonl", "--mask"], "--mask takes the model that renders"),
        (["data", "show", "rows.jsonl", "--rows", "0"], "--rows is 0"),
        (["data", "inspect", "rows.jsonl", "--columns.prompt", "nope", "--read_as", "sft"], "every row was left out"),
    ],
)
def test_mistakes_are_told(rows: str, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dispatch(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "none.jsonl"], r"there is no file none.jsonl, .*\.align\.$"),
        (["convert", "rows.jsonl", "new.jsonl"], "new.jsonl.* For rows to be written there: --out new.jsonl"),
        (["convert", "rows.jsonl", "--out", "rows.jsonl"], "rows.jsonl exists already"),
        (["convert", "rows.jsonl", "--out", "o.parquet"], "o.parquet: rows are written as JSON lines"),
        (["convert", "rows.jsonl", "--out", "o.jsonl.gz"], "End the name in .jsonl"),
        (["convert", "rows.jsonl", "--seed", "1"], "seed has no effect: nothing is left to chance"),
        (
            ["convert", "rows.jsonl", "pairs.jsonl", "--columns.prompt", "ask"],
            "different kinds: rows.jsonl: sft, pairs",
        ),
        (["split", "rows.jsonl", "--fraction", "2"], "fraction"),
        (["mix", "rows.jsonl"], "there is nothing to mix"),
        (["mix", "rows.jsonl=x", "a.jsonl=1"], "expected FILE=WEIGHT"),
        (["mix", "rows.jsonl=1", "rows.jsonl=2"], "is named twice"),
        (["mix", "rows.jsonl=0.5", "pairs.jsonl", "--rows", "2"], "rows is set, but pairs.jsonl has no weight"),
        (["mix", "rows.jsonl=1", "pairs.jsonl=1", "--columns.prompt", "ask"], "different kinds"),
    ],
)
def test_mistakes_in_making_data_are_told(rows: str, words: list[str], message: str) -> None:
    write_rows(Path("pairs.jsonl"), [{"ask": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(InputError, match=message):
        make_data(*words)


def test_an_overview(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    dispatch(["data"])
    shown = capsys.readouterr().out
    assert shown.count("align data ") == 7 and max(map(len, shown.splitlines())) <= 80
    with pytest.raises(SystemExit):
        dispatch(["help", "data", "show"])
    assert "usage: align data show" in capsys.readouterr().out


def test_no_secret_of_a_url_is_told(
    rows: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passwords and the queries of signed links; the rest of the address is."""
    found = Data(Path(rows), data_digest(rows))
    monkeypatch.setattr(data, "find_data", lambda *_: found)
    monkeypatch.setattr(question, "find_data", lambda *_: found)
    url, columns = "https://me:hidden@host/rows.jsonl?token=hidden", ["--columns.prompt", "ask"]
    dispatch(["data", "inspect", url, *columns])
    make_data("mix", f"{url}=1", f"{url}2=1", *columns)
    found = capsys.readouterr()
    assert (found.out + found.err).count("https://me:***@host/rows.jsonl?token=***") == 5
    assert "hidden" not in found.out + found.err
