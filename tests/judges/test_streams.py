"""Streams that a judge closes are closed for it alone. The truth is what arrives at both ends of a process's pipes."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from align.ground import terminal
from align.judges import streams
from tests.conftest import ROOT

PROGRAM = """
import sys
from align.data.records import Message, Prompt
from align.judges import load
rows = [Prompt((Message("user", "a"),), {}, "rows.jsonl:1", "", True)]
judge = load("judge.py:score", rows)
print(judge(rows, ["four"]), judge(rows, ["three"]))
print("still here", file=sys.stderr)
"""
SAID = "judge: judge.py closed stdout or stderr, which Align goes on with: they are open again\n"


def both(folder: Path, line: str) -> tuple[int, str, str]:
    text = f"import os, sys\ndef score(completions, **kw):\n    {line}\n    return [len(c) for c in completions]\n"
    (folder / "judge.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "sys.stdout.close()",
        "sys.stderr.close()",
        "sys.stdout.buffer.close()",
        "sys.__stdout__.close(); sys.__stderr__.close()",
        "sys.__stderr__.detach()",
        "os.close(1); os.close(2)",
        "sys.stdout.close(); sys.stdout = sys.stderr = None",
    ],
)
def test_what_is_closed_is_open_again(tmp_path: Path, line: str) -> None:
    assert both(tmp_path, line) == (0, "[4.0] [5.0]\n", f"{SAID}still here\n")


@pytest.mark.parametrize("line", ["pass", "sys.stdout = open(os.devnull, 'w')", "sys.stderr = None"])
def test_what_is_not_closed(tmp_path: Path, line: str) -> None:
    """Negative controls: nothing is said."""
    assert both(tmp_path, line) == (0, "[4.0] [5.0]\n", "still here\n")


def test_it_cannot_print_there_any_more(tmp_path: Path) -> None:
    """As in Python itself: an error of the judge's, in its name."""
    code, _, said = both(tmp_path, "sys.stdout.close(); print('x')")
    assert code == 1 and "judge.py:score failed: ValueError: I/O operation on closed file" in said


def test_our_own_lines_are_drawn_while_a_judge_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of progress may command the terminal, what a judge prints may not."""
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with streams.streams_kept("judge.py:score"):
        terminal.on_stderr("loading", end="", redraw=True)
        print("\x1b[2J", file=sys.stderr)
    assert shown.getvalue() == "\r\x1b[Kloading\r\x1b[K\\u001b[2J\n"
