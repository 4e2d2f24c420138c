"""What `align` prints in a terminal of the kernel's (pty), beside what it prints in a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from struct import pack

import pytest

from tests.conftest import ROOT, Pipeline, run_align

# PEFT 0.21 reads the old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

COLUMNS = 60


def in_terminal(*words: str) -> list[str]:
    """The lines that stdout shows in a terminal of so many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, pack("HHHH", 40, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "align", *words]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=slave, stderr=subprocess.DEVNULL, env=env):
        os.close(slave)
        shown = b""
        while True:
            try:
                shown += os.read(master, 4096)
            except OSError:  # Linux's end of a terminal
                break
    os.close(master)
    return shown.decode().replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("what", ["show", "dry run", "recipe"])
def test_no_line_is_cut_within_a_word(what: str, trained: Pipeline, tmp_path: Path):
    """Prose breaks between words, but for a word that is wider itself; code to copy has a line each, as it has in a
    pipe, whose wide lines are the control."""
    data, store = tmp_path / "sft.jsonl", str(trained.store.path)
    data.write_text('{"prompt": "What is 3 plus 4?", "completion": "It is 7."}\n' * 300)
    words = {
        "show": ["show", "tiny/ppo", "--store", store],
        "dry run": ["sft", "--base", "tiny/pretrain", "--data", str(data), "--dry-run", "--store", store],
        "recipe": ["run", str(trained.recipe), "--dry-run", "--store", str(tmp_path / "new")],
    }[what]
    shown, piped = in_terminal(*words), run_align(*words).stdout.splitlines()
    code = piped[piped.index("") :] if what == "show" else []
    wide = [[line for line in lines if len(line) > COLUMNS and line.split()[1:]] for lines in (shown, piped)]
    assert wide[0] == [line for line in code if line in wide[1]] and len(wide[1]) > len(wide[0])
    assert " ".join(shown).split() == " ".join(piped).split()
