"""`align data clean` and `decontaminate` from the command line to files: what stays, what is kept aside, what is
told."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from align.cli.command import dispatch
from align.ground.errors import InputError
from tests.conftest import read_rows, write_rows

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
    dispatch(["data", "clean", rows, "--out", "out.jsonl"])
    told = capsys.readouterr().out
    kept = read_rows("out.jsonl")
    assert [row["id"] for row in kept] == [1, 4, 6] and kept[0] == ROWS[0]
    assert kept[1] == {"id": 4, "prompt": "Café?", "completion": "Yes, a café is open."}
    report = json.loads(Path("out.report.json").read_text())
    counts = {reason: found["rows"] for reason, found in report["removed"].items()}
    assert counts == {"near duplicate": 1, "exact duplicate": 1, "rule gopher_top_runs": 1}
    assert report["changed"]["text repaired"]["rows"] == 1 and report["left_as_they_are"] == ["meta"]
    assert report["settings"]["near"] == 0.8 and "exact duplicate  (rows.jsonl:3: repeats rows.jsonl:1)" in told
    assert restored("out") == ROWS
    assert stat.S_IMODE(Path("out.aside.jsonl").stat().st_mode) == 0o600
    dispatch(["data", "clean", rows, "--out", "again.jsonl"])
    for name in ("jsonl", "aside.jsonl", "report.json"):
        assert Path(f"again.{name}").read_bytes() == Path(f"out.{name}").read_bytes()
    off = ["--near", "none", "--exact", "no", "--repair", "no", "--rules", "none"]
    dispatch(["data", "clean", rows, "--out", "raw.jsonl", *off])
    assert read_rows("raw.jsonl") == ROWS and not read_rows("raw.aside.jsonl")


def test_languages_and_word_lists(rows: str) -> None:
    dispatch(["data", "clean", rows, "--out", "en.jsonl", "--languages", "en", "--near", "none"])
    assert [row["id"] for row in read_rows("en.jsonl")] == [1, 2, 4, 6]  # the Chinese answer is too short to tell
    Path("words.txt").write_text("# names\ntown\n聊\n")
    dispatch(["data", "clean", rows, "--out", "words.jsonl", "--word-lists", "words.txt"])
    assert [row["id"] for row in read_rows("words.jsonl")] == [4]


def test_decontaminate(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("eval.jsonl").write_text(json.dumps({"question": "Tell me of the rivers!"}) + "\n")
    dispatch(["data", "decontaminate", rows, "--against", "eval.jsonl", "--out", "out.jsonl"])
    assert [row["id"] for row in read_rows("out.jsonl")] == [4, 5, 6]
    assert "3  holds an evaluation question  (rows.jsonl:1: 80% like eval.jsonl:1" in capsys.readouterr().out


def test_mistakes_are_told(rows: str) -> None:
    Path("there.jsonl").touch()
    for said, message in (
        (["--out", "there.jsonl"], "exists already"),
        (["--out", "out.csv"], "End the name in .jsonl"),
        (["--out", "no/out.jsonl"], "there is no folder no"),
        (["--out", "a.jsonl", "--rules", "gofer"], "gofer is none"),
        (["--out", "a.jsonl", "--near", "2"], "--near 2: Input should be less than or equal to 1"),
        (["--out", "a.jsonl", "--exact", "maybe"], "--exact maybe"),
        (["--out", "a.jsonl", "--languages", "klingon"], "languages: klingon is not known"),
        (["--out", "a.jsonl", "--word-lists", "none.txt"], "none.txt cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            dispatch(["data", "clean", rows, *said])
    Path("broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    with pytest.raises(InputError, match=r"broken\.jsonl:2"):
        dispatch(["data", "clean", "broken.jsonl", "--out", "b.jsonl"])
    dispatch(["data", "clean", "broken.jsonl", "--out", "b.jsonl", "--bad-rows", "drop"])
    assert len(read_rows("b.jsonl")) == 1 and read_rows("b.aside.jsonl")[0]["row"] is None
    assert not list(Path().glob("a.*")) and not list(Path().glob(".tmp*"))


def test_a_missing_library_is_named(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from align.cleaning import repair

    repair._settings.cache_clear()
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(InputError, match=r"needs ftfy, which is not installed: pip install 'align-rlhf\[clean\]'"):
        dispatch(["data", "clean", rows, "--out", "out.jsonl"])
    dispatch(["data", "clean", rows, "--out", "out.jsonl", "--repair", "no"])
