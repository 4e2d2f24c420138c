"""`align data …` from the command line to files and text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.cli import data
from align.cli.command import dispatch
from align.ground.errors import InputError
from align.inputs.fit import Data
from tests.conftest import read_rows, write_rows

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


def test_convert_split_and_mix(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["data", "convert", rows, "ours.jsonl", "--columns.prompt", "ask"])
    assert read_rows("ours.jsonl")[0]["messages"][1] == {"role": "assistant", "content": "0."}
    dispatch(["data", "split", "ours.jsonl", "train.jsonl", "held.jsonl", "--fraction", "0.3"])
    train, held = read_rows("train.jsonl"), read_rows("held.jsonl")
    assert sorted(map(str, train + held)) == sorted(map(str, read_rows("ours.jsonl"))) and 0 < len(held) < 20
    dispatch(["data", "mix", "mixed.jsonl", "train.jsonl=2", "held.jsonl=1", "--rows", "6"])
    mixed = read_rows("mixed.jsonl")
    assert sum(row in held for row in mixed) == 2 and sum(row in train for row in mixed) == 4
    dispatch(["data", "mix", "again.jsonl", "train.jsonl=2", "held.jsonl=1", "--rows", "6"])
    assert read_rows("again.jsonl") == mixed
    dispatch(["data", "mix", "other.jsonl", "train.jsonl=2", "held.jsonl=1", "--rows", "6", "--seed", "1"])
    assert read_rows("other.jsonl") != mixed


def test_what_counts_is_marked(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As transformers renders it, with marks around the answer and its end of turn."""
    from transformers import AutoTokenizer

    said = ["data", "show", rows, "--columns.prompt", "ask", "--mask", "--base", TINY, "--rows", "1"]
    dispatch(said)
    shown = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert "«" in shown and shown.index("«") < shown.index("0.") < shown.index("»")
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": "What is 0?"}, {"role": "assistant", "content": "0."}]
        theirs = tokenizer.apply_chat_template(chat, tokenize=False)
        assert theirs.startswith(shown.split("\n", 1)[1].replace("«", "").replace("»", "").strip()[:20])
    dispatch([*said, "--html", "page.html"])
    page = Path("page.html").read_text()
    assert page.count("<mark>") == 2 and 'dir="auto"' in page and "0." in page.split("<mark>")[2].split("</mark>")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "inspct", "x"], "did you mean data inspect"),
        (["data", "inspect", "rows.jsonl", "--shape", "nectr"], "nectr is not known.*pku_saferlhf.*nectar"),
        (["data", "show", "rows.jsonl", "--mask"], "--mask takes the model that renders"),
        (["data", "show", "rows.jsonl", "--rows", "0"], "--rows is 0"),
        (["data", "convert", "none.jsonl", "o.jsonl"], "there is no file none.jsonl"),
        (["data", "convert", "rows.jsonl", "rows.jsonl"], "rows.jsonl exists already"),
        (["data", "convert", "rows.jsonl", "o.parquet"], "o.parquet: rows are written as JSON lines"),
        (["data", "convert", "rows.jsonl", "o.jsonl.gz"], "End the name in .jsonl"),
        (["data", "mix", "o.csv", "rows.jsonl=1"], "o.csv: rows are written as JSON lines"),
        (["data", "split", "rows.jsonl", "a.jsonl", "a.jsonl"], "a.jsonl is named for both sides"),
        (["data", "split", "rows.jsonl", "a", "b", "--fraction", "2"], "--fraction is 2"),
        (["data", "mix", "o.jsonl", "rows.jsonl"], "expected FILE=WEIGHT"),
        (["data", "mix", "o.jsonl", "rows.jsonl=x"], "expected FILE=WEIGHT"),
        (["data", "inspect", "rows.jsonl", "--columns.prompt", "nope", "--kind", "sft"], "every row was left out"),
    ],
)
def test_mistakes_are_told(rows: str, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dispatch(words)


def test_an_overview(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    dispatch(["data"])
    shown = capsys.readouterr().out
    assert shown.count("align data ") == 7 and max(map(len, shown.splitlines())) <= 80
    with pytest.raises(SystemExit):
        dispatch(["help", "data", "mix"])
    assert "usage: align data mix" in capsys.readouterr().out


def test_no_secret_of_a_url_is_told(
    rows: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passwords and the queries of signed links; the rest of the address is."""
    monkeypatch.setattr(data, "find_data", lambda *_: Data(Path(rows), "0" * 64))
    url, columns = "https://me:hidden@host/rows.jsonl?token=hidden", ["--columns.prompt", "ask"]
    dispatch(["data", "inspect", url, *columns])
    dispatch(["data", "mix", "mixed.jsonl", f"{url}=1", *columns])
    found = capsys.readouterr()
    assert (found.out + found.err).count("https://me:***@host/rows.jsonl?token=***") == 2
    assert "hidden" not in found.out + found.err
