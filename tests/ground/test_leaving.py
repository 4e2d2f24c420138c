"""A thread that a judge left does not hold the process: it ends with its own exit code, after what is registered to be
done at its end. The truth is Python, which waits for such a thread."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import atexit, threading, time
from align.ground import leaving
from align.ground.errors import InputError
from align.ground.terminal import guarded
leaving.GRACE = 0.2
atexit.register(lambda: print("put in order", flush=True))
def body():
    with leaving.threads_of("judge: j.py"):
        threading.Thread(target=time.sleep, args=({seconds},), daemon={daemon}).start()
    print("made")
    {more}
guarded(lambda: guarded(body))
"""


def ended(seconds: float, daemon: bool = False, more: str = "", given_up: float = 20.0) -> tuple[int, str, str]:
    program = PROGRAM.format(seconds=seconds, daemon=daemon, more=more)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=given_up, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("more", "code", "said"), [("", 0, ""), ("raise InputError('no row')", 2, "no row\n")])
def test_a_thread_that_goes_on(more: str, code: int, said: str) -> None:
    told = "judge: j.py left a thread running; Align ends without it\n"
    assert ended(1000, more=more) == (code, "made\nput in order\n", said + told)


@pytest.mark.parametrize(("seconds", "daemon"), [(0.05, False), (1000, True)])
def test_a_thread_that_holds_nothing(seconds: float, daemon: bool) -> None:
    """Negative controls: it ends by itself, or Python does not wait for it."""
    assert ended(seconds, daemon) == (0, "made\nput in order\n", "")


def test_python_alone_waits() -> None:
    """Negative control: without the watch it is waited for."""
    with pytest.raises(subprocess.TimeoutExpired):
        ended(1000, more="leaving.LEFT.clear()", given_up=5.0)
