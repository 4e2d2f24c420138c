"""`align` in processes forked from one that has torch and its friends loaded already, which costs more than most
commands that tests run."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from align.ground import progress

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["align", "torch", "transformers", "peft", "trl", "datasets", "tests.forked"])
STREAMS = ("in", "out", "err")
gc.freeze()  # what is loaded by now is no garbage of a command's


def run(
    words: Sequence[str], cwd: Path, environment: Mapping[str, str], stdin: str
) -> subprocess.CompletedProcess[str]:
    """`align WORDS` from its first line to its exit code, in a process of its own. One that is not forked where
    settings of the hub differ: its clients read them when they are imported."""
    if _of_the_hub(environment) != HUB:
        command = [sys.executable, "-c", "from tests.forked import align; align()", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, input=stdin, env=environment)
    with TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in STREAMS]
        for stream in streams:
            stream.write_text(stdin if stream.name == "in" else "")
        process = FORKS.Process(target=_command, args=(words, cwd, environment, streams))
        process.start()
        process.join()
        assert process.exitcode is not None
        said = [stream.read_text() for stream in streams[1:]]
        return subprocess.CompletedProcess(["align", *words], process.exitcode, *said)


def _of_the_hub(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("HF_")}


HUB = _of_the_hub(os.environ)


def _command(words: Sequence[str], cwd: Path, environment: Mapping[str, str], streams: Sequence[Path]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(os.open(stream, os.O_RDWR | os.O_APPEND), number)
    sys.stdin = os.fdopen(0, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["align", *words]
    try:
        align()
    finally:
        atexit._run_exitfuncs()


def align() -> None:
    """The command of `sys.argv`. Lines that say how long it has been at work stay away: where others work beside a
    test, they come anywhere."""
    progress.FIRST = 3600.0
    runpy.run_module("align", run_name="__main__", alter_sys=True)
