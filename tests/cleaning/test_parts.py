"""Files that are cleaned apart, in any order, and then compared give what one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from align.clean import Config
from align.cleaning.files import ASIDE, REPORT, ROWS
from align.cleaning.parts import MADE, Alone, Among, SharedWork
from align.data.files.sources import data_digest
from align.ground.errors import InputError
from tests.cli.test_cleaning import STORY
from tests.conftest import ROOT, make_data, read_rows, write_rows

TASKS = 4
SCRIPT = ROOT / "recipes/launch/clean_datatrove.py"


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Five files, one of them empty, with junk, text to repair, private data, and repeats within files and across."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Tell me of river {i}.", "completion": STORY.replace("town", f"town {i}")} for i in range(20)]
    for i in (3, 9):
        rows += [{**rows[i]}, {**rows[i], "completion": rows[i]["completion"].replace(" old ", " very old ")}]
    rows += [
        {"prompt": "Offers?", "completion": "buy now " * 60},
        {"prompt": "CafÃ©?", "completion": "Ask anna@example.com."},
    ]
    paths = [tmp_path / f"{i}.jsonl" for i in range(5)]
    for i, path in enumerate(paths):
        write_rows(path, rows[i::4] if i < 4 else [])
    (tmp_path / "words.txt").write_text("river 7\n")
    return paths


def in_one(shards: list[Path]) -> dict[str, object]:
    make_data("clean", *[path.name for path in shards], "--out", "one.jsonl", "--word-lists", "words.txt")
    return content(*[Path(f"one.{name}" if name != ROWS else "one.jsonl") for name in (ROWS, ASIDE, REPORT)])


def content(rows: Path, aside: Path, report: Path) -> dict[str, object]:
    return {ROWS: rows.read_bytes(), ASIDE: aside.read_bytes(), REPORT: json.loads(report.read_text())}


def made(folder: Path) -> dict[str, object]:
    return content(*[folder / MADE / name for name in (ROWS, ASIDE, REPORT)])


def test_parts_give_what_one_process_gives(shards: list[Path], tmp_path: Path) -> None:
    files, words = (tuple((path, data_digest(path)) for path in some) for some in (shards, [Path("words.txt")]))
    config = Config.model_validate({"data": [str(path) for path in shards]})
    work = SharedWork(config, {}, "error", files, words, tmp_path / "parts")
    for rank in (2, 0, 3):
        Alone(work)(None, rank, TASKS)
    with pytest.raises(InputError, match=r"1\.jsonl did not end well"):
        Among(work)(None, 0, 1)
    Alone(work)(None, 1, TASKS)
    Among(work)(None, 0, 1)
    assert made(work.folder) == in_one(shards)
    assert {path.stat().st_mode & 0o77 for path in (work.part(0), work.folder / MADE)} == {0}
    report = json.loads((work.folder / MADE / REPORT).read_text())
    assert {reason: found["rows"] for reason, found in report["removed"].items()} == {
        "exact duplicate": 2,
        "near duplicate": 2,
        "rule gopher_top_runs": 1,
        "word list (river 7)": 1,
    }
    make_data("clean", shards[3].name, "--out", "alone.jsonl")  # negative control: by itself a repeat stays
    assert len(read_rows("alone.jsonl")) > len([r for r in read_rows(shards[3]) if r in read_rows("one.jsonl")])


def test_what_json_cannot_hold_is_refused_in_a_task_too(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["Hi"], "completion": ["Ho"], "day": [date(2026, 1, 1)]}), path)
    config = Config.model_validate({"data": [str(path)]})
    work = SharedWork(config, {}, "error", ((path, data_digest(path)),), (), tmp_path / "parts")
    with pytest.raises(InputError, match=r"a\.parquet row 1: the row holds what JSON cannot"):
        Alone(work)(None, 0, 1)
    assert not work.part(0).exists()


def test_a_file_that_changes_meanwhile(shards: list[Path], tmp_path: Path) -> None:
    work = SharedWork(Config(data=["x"]), {}, "error", ((shards[0], "0" * 64),), (), tmp_path / "parts")
    with pytest.raises(Exception, match=r"0\.jsonl"):
        Alone(work)(None, 0, 1)


@pytest.mark.slow
def test_datatrove(shards: list[Path], tmp_path: Path) -> None:
    """Four tasks of its local executor; the same command again does nothing, another one is refused."""
    pytest.importorskip("datatrove")

    def run(*more: str, tasks: int = TASKS) -> tuple[int, str]:
        command = [sys.executable, SCRIPT, *shards, "--folder", tmp_path / "out", "--tasks", str(tasks)]
        command += ["--word-lists", "words.txt", *more]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, done.stderr

    assert run("--workers", "2")[0] == 0
    assert made(tmp_path / "out") == in_one(shards)
    before = (tmp_path / "out" / MADE / ROWS).stat().st_mtime_ns
    assert run()[0] == 0 and (tmp_path / "out" / MADE / ROWS).stat().st_mtime_ns == before
    for words, told in {
        ("--near", "null"): "holds what was made of other files or settings",
        ("--name", "clean"): "--name has no effect here",
        ("--dry-run",): "--dry_run has no effect here",
        ("--executor", "slurm"): "needs both",
    }.items():
        code, error = run(*words)
        assert code == 2 and told in error and "Traceback" not in error
    assert "expected 1 to 5" in run(tasks=6)[1]
