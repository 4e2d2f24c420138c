"""Names of files: which one was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.ground.paths import near, plain


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("demo.jsonl", "demos.jsonl"),
        ("demos.json", "demos.jsonl"),
        ("./prompt.jsonl", "./prompts.jsonl"),
        ("sub/pair.jsonl", "sub/pairs.jsonl"),
        ("judg.py", "judge.py"),
        ("zzz.jsonl", None),  # of an ending alone nothing is near
        ("sub/demos.jsonl", None),  # nor in another folder
        ("gone/demos.jsonl", None),
        ("z\0", None),
        ("x" * 5000, None),
        ("", None),
    ],
)
def test_the_near_file(named: str, meant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("demos.jsonl", "prompts.jsonl", "judge.py", "sub/pairs.jsonl"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert near(named) == (f" Did you mean {meant}?" if meant else "")


def test_what_is_named_is_not_what_was_meant(tmp_path: Path) -> None:
    """A file where something else was expected is never its own correction; the control is one of nearly its name."""
    (tmp_path / "judge.py").touch()
    assert near(tmp_path / "judge.py") == ""
    assert near(tmp_path / "judg.py") == f" Did you mean {tmp_path / 'judge.py'}?"


def test_a_path_is_told_without_steps_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control: where a link on the way makes the steps lead elsewhere, they stay."""
    for folder in ("a/b", "c"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "c")
    assert plain("../c/../a/model") == plain(tmp_path / "c/../a/model") == str(tmp_path / "a/model")
    (tmp_path / "c/link").symlink_to(tmp_path / "a/b")
    assert plain("link/../model") == str(tmp_path / "c/link/../model")
