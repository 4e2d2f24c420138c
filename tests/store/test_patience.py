"""Remotes that never answer, what a message may not hold, and processes that are killed while files come in or go
out."""

from __future__ import annotations

import http.server
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from align.ground.errors import AlignError, InputError
from align.store import Store
from align.store.remote import backend
from align.store.remote.address import secrets, without
from tests.store.remotes import make_line

ROOT = Path(__file__).parents[2]


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that takes every connection and says nothing."""
    server, taken = socket.create_server(("127.0.0.1", 0)), []
    threading.Thread(target=lambda: [taken.append(server.accept()) for _ in range(20)], daemon=True).start()
    found = f"http://127.0.0.1:{server.getsockname()[1]}"
    for key, value in {
        "ACCESS_KEY_ID": "test",
        "SECRET_ACCESS_KEY": "hunter2",
        "DEFAULT_REGION": "us-east-1",
        "ENDPOINT_URL": found,
    }.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield found
    server.close()


def test_a_server_that_never_answers(silent: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_line(store, tmp_path)
    monkeypatch.setattr(backend, "FIRST", (1, 2))
    for transfer in (store.pull, store.push):
        begun = time.monotonic()
        with pytest.raises(AlignError, match="s3://bucket/x: no answer within 1 s, asked 2 times") as told:
            transfer("s3://bucket/x")
        assert 2 <= time.monotonic() - begun < 20 and "hunter2" not in str(told.value)


@pytest.mark.parametrize("path", ["", "/x"])
def test_a_web_server_that_never_answers(
    path: str, silent: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nor one that is not there. Control: one that answers, and has nothing, "holds no names"."""
    make_line(store, tmp_path)
    monkeypatch.setattr(backend, "FIRST", (1, 1))
    with pytest.raises(AlignError, match=f"{silent}{path}: no answer in time"):
        store.pull(f"{silent}{path}")
    with pytest.raises(AlignError, match=r"http://127.0.0.1:1/x: .*[Cc]onnect"):
        store.pull("http://127.0.0.1:1/x")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="holds no names"):
            store.pull(f"http://127.0.0.1:{server.server_port}/none")
        server.shutdown()


@pytest.mark.parametrize(
    "url", ["ftp://you:hunter2@127.0.0.1:1/x", "sftp://you:hunter2@h/x", "foo://you:hunter2@h/x", "s3://you:hunter2@/"]
)
def test_no_message_holds_a_password(url: str, store: Store):
    with pytest.raises((AlignError, InputError)) as told:
        store.pull(url)
    assert "hunter2" not in str(told.value) and "***" in str(told.value)
    assert (
        secrets("https://h/x?sig=abc") == ["sig=abc"] and without(secrets(url), f"cannot reach {url}").count("***") == 1
    )
    assert secrets("s3://bucket/x") == []  # negative control


COMMANDS = {
    "pull": "store.pull(sys.argv[2])",
    "checkout": "checkout(store.resolve('line/ppo'), sys.argv[3], store)",
    "gc": "store.collect(delete=True)",
}


@pytest.mark.parametrize("command", ["pull", *(pytest.param(c, marks=pytest.mark.slow) for c in ("checkout", "gc"))])
def test_kill_9_while_files_move(command: str, store: Store, tmp_path: Path):
    """At random moments: the store is sound, no folder is half there, and the same command then ends as it would
    have."""
    make_line(store, tmp_path)
    store.push(tmp_path / "far")
    draw, took = random.Random(0), 0.1
    program = (
        "import sys; from align.store import Store; from align.exchange.transfer import checkout; store = "
        "Store(sys.argv[1])\n"
    )
    program += f"print(flush=True); {COMMANDS[command]}"
    other = Store(tmp_path / "other") if command == "pull" else store
    for number in range(6):
        out = tmp_path / f"out{number}"
        words = [sys.executable, "-c", program, str(other.path), str(tmp_path / "far"), str(out)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout and process.stdout.readline()
        begun = time.monotonic()
        try:
            process.wait(timeout=draw.uniform(0, took) if number < 5 else 60)
            took = time.monotonic() - begun
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        process.stdout.close()
        assert other.verify() == []
        assert not out.exists() or {"README.md", "history.jsonl"} < {path.name for path in out.iterdir()}
        if command == "pull" and number < 5:
            shutil.rmtree(other.path, ignore_errors=True)
    assert process.returncode == 0 and other.refs() == store.refs() and (command != "checkout" or out.exists())


def test_a_clock_that_goes_back(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing is decided by the time of day: what is pushed, pulled and collected is the same a year earlier."""
    made = make_line(store, tmp_path)
    store.push(tmp_path / "far")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3e7)
    for path in (tmp_path / "far").rglob("*"):
        os.utime(path, (now() + 3e7, now() + 3e7))
    other = Store(tmp_path / "other")
    assert other.pull(tmp_path / "far").artifacts == len(made) and other.verify() == []
    assert store.push(tmp_path / "far").files == 0 and store.collect(delete=True).artifacts == []
