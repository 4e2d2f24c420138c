"""Several processes on one store, and processes killed without a warning."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.ground.disk import TEMP
from align.ground.errors import AlignError
from align.store import Store, digest_json

ROOT = Path(__file__).parents[2]
KEY = digest_json("one question")

PUTS = """
import itertools, sys
from pathlib import Path
from align.store import Store
from tests.store.conftest import fill, put

store, folder, seed = Store(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
for step in itertools.count():
    files = {"weights": f"{seed} {step}".encode() * 20_000, "tokenizer/vocab": b"shared"}
    artifact = put(store, fill(folder, files), version=step)
    store.tag("latest", artifact)
    print(artifact, flush=True)
"""

ASKS = """
import sys, time
from pathlib import Path
from align.store import Store
from tests.store.conftest import fill, put

store, folder, lock = Store(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "lock"
key = sys.argv[4]
print("ready", flush=True)
sys.stdin.readline()
with store.run(key, lock=lock) as run:
    artifact = store.asked(key)
    if artifact is None:
        with open(folder.parent / "worked", "a") as log:
            log.write("once\\n")
        time.sleep(0.5)
        artifact = put(store, fill(folder, {"weights": b"the answer"}))
        run.finish(artifact, {"seconds": 0.5})
print(artifact, flush=True)
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that has said it is ready."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert lines(process, 1) == ["ready"], process.communicate()[1]
    return process


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    """Its next lines, once it has printed them."""
    assert process.stdout
    return [process.stdout.readline().strip() for _ in range(count)]


def go(process: subprocess.Popen[str]) -> None:
    """Let a process that waits for a line go on."""
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    return out.strip(), err


def test_killed_writers_leave_a_sound_store(tmp_path: Path):
    """kill -9 at six random moments: what was committed reads back, nothing is damaged, only temp files are left
    over."""
    store, committed = Store(tmp_path / "store"), []
    for seed in range(6):
        process = start(PUTS, store.path, tmp_path / "files", seed)
        committed += lines(process, 2)
        time.sleep(random.Random(seed).uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        committed += finish(process)[0].split()
        assert process.returncode == -signal.SIGKILL
        assert store.verify() == []
    for digest in committed:
        assert store.read(store.resolve(digest), "weights")
    assert store.resolve("latest").digest in {artifact.digest for artifact in store.artifacts()}
    unfinished = [path for path in store.path.rglob("*") if path.is_file() and path.name.startswith(TEMP)]
    assert len(unfinished) <= 6, "at most one for each kill"
    (store.path / "objects/00").mkdir(exist_ok=True)
    (store.path / "objects/00" / ("00" + "f" * 62)).write_bytes(b"half an obj")
    assert len(store.verify()) == 1, "negative control: a half-written object under its final name would be found"


def test_two_writers_lose_nothing(tmp_path: Path):
    """Both write the same tokenizer and the same ref while they commit; every artifact that either reported is there
    and whole."""
    store = Store(tmp_path / "store")
    writers = [start(PUTS, store.path, tmp_path / f"files{seed}", seed) for seed in range(2)]
    reported = {digest for process in writers * 3 for digest in lines(process, 5)}
    for process in writers:
        process.send_signal(signal.SIGKILL)
        reported |= set(finish(process)[0].split())
    assert len(reported) >= 30 and reported <= {artifact.digest for artifact in store.artifacts()}
    assert store.verify() == []


@pytest.mark.parametrize("lock", [True, False])
def test_two_processes_asking_one_key_do_the_work_once(lock: bool, tmp_path: Path):
    """The second waits, says for whom, and gets the first one's answer. Without the lock (the control) both work."""
    store = Store(tmp_path / "store")
    processes = [start(ASKS, store.path, tmp_path / f"files{n}", "lock" if lock else "none", KEY) for n in range(2)]
    go(processes[0])
    while not (tmp_path / "worked").exists():
        time.sleep(0.01)
    go(processes[1])
    results = [finish(process) for process in processes]
    assert {out for out, _ in results} == {store.resolve(next(store.artifacts())).digest}
    assert (tmp_path / "worked").read_text() == "once\n" * (1 if lock else 2)
    waited = [err for _, err in results if "is being done by pid" in err]
    assert len(waited) == (1 if lock else 0)
    if lock:
        assert any(f"pid {process.pid} on {os.uname().nodename} since 20" in waited[0] for process in processes)
    assert store.verify() == []


def test_a_killed_holder_frees_the_key(tmp_path: Path):
    store = Store(tmp_path / "store")
    holder = start(
        ASKS.replace("0.5)\n        artifact", "60)\n        artifact"), store.path, tmp_path / "files", "lock", KEY
    )
    go(holder)
    while not (tmp_path / "worked").exists():
        time.sleep(0.01)
    holder.kill()
    finish(holder)
    begun = time.monotonic()
    with store.run(KEY):
        assert time.monotonic() - begun < 5


def test_two_keys_do_not_wait_for_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store = Store(tmp_path / "store")
    with store.run(KEY), store.run(digest_json("another question")):
        assert capsys.readouterr().err == ""


def test_the_cache_may_be_asked_for_by_two_at_once(tmp_path: Path):
    """Both build the folder of one artifact; both get it whole."""
    store = Store(tmp_path / "store")
    writer = start(PUTS, store.path, tmp_path / "files", 0)
    (digest,) = lines(writer, 1)
    writer.kill()
    finish(writer)
    program = (
        "import sys; from align.store import Store; store = Store(sys.argv[1]); print('ready', flush=True); "
        "sys.stdin.readline()\n"
    )
    program += "for _ in range(20): print(sum(1 for path in store.folder(store.resolve(sys.argv[2])).rglob('*')))"
    readers = [start(program, store.path, digest) for _ in range(2)]
    for process in readers:
        go(process)
    for process in readers:
        out, err = finish(process)
        assert out.split() == ["3"] * 20, err
    with pytest.raises(AlignError):
        store.resolve("0" * 64)
