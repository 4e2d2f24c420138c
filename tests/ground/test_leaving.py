"""A thread that a judge left does not hold the process: it ends with its own exit code, after what is registered to be
done at its end. The truth is Python, which waits for such a thread."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from unittest.mock import Mock

import pytest

from align.ground import prompt
from align.ground.leaving import Interrupt
from align.ground.terminal import GOES_ON
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
    assert ended(1000, more=more) == (code, "made\n", said + told + "put in order\n")


@pytest.mark.parametrize(("seconds", "daemon"), [(0.05, False), (1000, True)])
def test_a_thread_that_holds_nothing(seconds: float, daemon: bool) -> None:
    """Negative controls: it ends by itself, or Python does not wait for it."""
    assert ended(seconds, daemon, more="time.sleep(0.3)") == (0, "made\nput in order\n", "")


@pytest.mark.parametrize("seconds", [0.05, 0.5])
def test_what_it_prints_is_no_answer(seconds: float) -> None:
    """While the command goes on, and after its end: on stderr. The control is what the command prints."""
    program = f"""
import threading, time
from align.ground import leaving
from align.ground.terminal import guarded
def body():
    with leaving.threads_of("judge: j.py"):
        threading.Thread(target=lambda: (time.sleep({seconds}), print("late", flush=True))).start()
    time.sleep(0.2)
    print("made")
guarded(body)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout, done.stderr) == ("made\n", "late\n")


def test_python_alone_waits() -> None:
    """Negative control: without the watch it is waited for."""
    with pytest.raises(subprocess.TimeoutExpired):
        ended(1000, more="leaving.LEFT.clear()", given_up=5.0)


STUCK = """
import ctypes, os, threading
from align.ground import leaving
from align.ground.terminal import guarded
mutex = ctypes.create_string_buffer(64)
def body():
    with leaving.at_once(0.3):
        threading.Timer(0.5, os.write, [1, b"waits\\n"]).start()
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
guarded(body)
"""
"""A wait that no signal interrupts: a lock that is taken twice."""


@pytest.mark.parametrize(("world", "code"), [("2", 75), ("1", None)])
def test_a_wait_in_a_library_ends_once_it_is_asked_to(world: str, code: int | None) -> None:
    """One of several processes ends; the control, a process alone, whose own work it is, goes on."""
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": world}
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "waits\n"
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20 if code else 2)
        assert process.poll() == code
    finally:
        process.kill()
    assert (f"{GOES_ON}\n" in process.communicate()[1]) is bool(code)


def test_a_signal_to_stop_ends_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM and a terminal that is closed do, at once. Negative control: Ctrl-C, which may have been meant for an
    answer."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for error, ends in ((Interrupt, True), (KeyboardInterrupt, False)):
        monkeypatch.setattr("builtins.input", Mock(side_effect=error))
        with pytest.raises(Interrupt) if ends else nullcontext():
            assert prompt.read_line(prompt.Interrupts()) is None
