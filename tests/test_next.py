"""The end of the quickstart: every command that it prints runs as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Pipeline


@pytest.fixture
def desk(quick_store: Pipeline, tmp_path: Path) -> Path:
    """A checkout whose quickstart ran."""
    shutil.copytree(quick_store.recipe.parents[1], tmp_path / "desk")
    shutil.copy(ROOT / "Makefile", tmp_path / "desk")
    return tmp_path / "desk"


def shell(line: str, desk: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "ALIGN_STORE"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "BROWSER": "echo opened %s"}
    return subprocess.run(line, shell=True, capture_output=True, text=True, input=stdin, cwd=desk, env=environment)


@pytest.mark.slow
def test_the_three_commands_work(desk: Path):
    ended = shell(f"make next VENV={sys.prefix}", desk)
    assert ended.returncode == 0 and "opened" not in ended.stdout, ended.stderr  # a pipe is nobody who looks
    chat, report, own = re.findall(r"^  (\S.*)$", ended.stdout.replace("\\\n", ""), re.MULTILINE)
    lines = ended.stdout.replace(sys.prefix, ".venv").splitlines()
    assert " chat " in chat and " sft " in own and max(map(len, lines)) < 80
    assert ended.stdout.count("report.html") == 1 and ended.stderr == ""

    said = shell(chat, desk, "What is 3 plus 4?\nWhat is 2 plus 2?\n")
    assert said.returncode == 0 and len(said.stdout.splitlines()) >= 2, said.stderr
    opened = shell(report, desk)
    assert opened.returncode == 0 and "report.html" in opened.stdout, opened.stderr
    assert "quickstart/report" in (desk / report.split()[-1]).read_text()
    trained = shell(own, desk)
    assert trained.returncode == 0 and (desk / ".align/refs/my-sft").is_file(), trained.stderr

    row = re.search(r"`(head .*?)`", ended.stdout)
    assert row and shell(row[1], desk).stdout.startswith('{"prompt": ')
    assert shell(f"make next VENV={sys.prefix}", desk).returncode == 0  # and again


def test_installing_alone(tmp_path: Path):
    """`make install` makes what `activate` puts on the PATH and runs nothing. Negative control: the quickstart does."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    asked, more = (shell(f"make --dry-run {target}", tmp_path).stdout for target in ("install", "quickstart"))
    assert "touch .venv/.installed" in asked and "--editable ." in asked and " run " not in asked
    said = asked[asked.rindex("touch .venv/.installed") :]
    assert all(next_ in said for next_ in ("source .venv/bin/activate", "align --help", "make quickstart"))
    assert "touch .venv/.installed" in more and "align run recipes/quickstart.yaml" in more


def test_before_the_quickstart_there_is_no_end(tmp_path: Path):
    """Negative control: nothing to look at is an error, not an invitation."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    ended = shell(f"make next VENV={sys.prefix}", tmp_path)
    assert ended.returncode != 0 and "chat" not in ended.stdout and "'quickstart/report' is not known" in ended.stderr
