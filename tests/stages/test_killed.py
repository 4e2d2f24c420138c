"""`kill -9` before an operation on files, wherever it comes in `align run` and `align merge --out`: nothing is lost,
nothing is half-written, and the same command goes on to what it would have made.

The worker is this file run as a script. It forks a process for each command, which dies before its operation of a given
number; that is where a kill could do harm. `tests.benchmarks.kills` kills at any moment.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from align.merge import is_export
from align.store import Store
from tests.conftest import ROOT, Pipeline
from tests.stages.helpers import committed

OPERATIONS = ("fsync", "link", "mkdir", "replace", "rmdir", "unlink")
NEVER = 1 << 30


def forked(words: list[str], at: int) -> int:
    """`align WORDS` in a process that dies before operation `at`; how it ended."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [at]

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def operate(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return operate

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    try:
        from align.cli import dispatch

        dispatch(words)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def seen(store: Store, before: dict[str, bytes], out: Path) -> dict[str, Any]:
    """What a kill left: what is damaged, what was there `before` and is not or is another, the names, and the files of
    `out`."""
    now = committed(store)
    return {
        "damaged": [str(damage) for damage in store.verify()],
        "lost": [name for name, content in before.items() if now.get(name) != content and "/." not in name],
        "names": sorted(store.refs()),
        "out": {str(path.relative_to(out)): path.stat().st_size for path in out.rglob("*")} if out.exists() else None,
    }


def work(store: Store, out: Path, moments: list[int], words: list[str]) -> None:
    """The command again and again, killed at each of the moments until one finds it done before; on stdout, what each
    left."""
    import align.ppo
    import align.training.trainer  # noqa: F401

    found = []
    for at in [*moments, NEVER]:
        before = committed(store)
        code = forked([*words, "--store", str(store.path)], at)
        found.append({"code": code, **seen(store, before, out)})
        if code == 0:
            break
    print(json.dumps(found))


def killed(store: Store, out: Path, moments: Sequence[int], *words: object) -> list[dict[str, Any]]:
    """What every kill left, and last the command that ended."""
    command = [sys.executable, "-m", "tests.stages.test_killed", store.path, out, json.dumps(list(moments)), *words]
    shared = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=shared, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert [f["code"] for f in found] == [-signal.SIGKILL] * (len(found) - 1) + [0], done.stderr
    assert [f["damaged"] + f["lost"] for f in found] == [[]] * len(found)
    return found


@pytest.mark.slow
def test_a_recipe(trained: Pipeline, tmp_path: Path) -> None:
    """Killed between stages and inside them, it makes what it made undisturbed. The control: a lost name and a cut
    object are seen."""
    for file in trained.recipe.parent.glob("*.*"):
        shutil.copy(file, tmp_path)
    store, draw = Store(tmp_path / "store"), random.Random(0)
    found = killed(store, tmp_path / "none", [draw.randint(1, 220) for _ in range(7)], "run", tmp_path / "tiny.yaml")
    assert store.refs() == trained.store.refs()
    assert len({len(f["names"]) for f in found}) > 3, "kills in several stages"
    store.collect(delete=True)
    assert not list(store.path.rglob(".tmp-*")) and store.refs() == trained.store.refs() and store.verify() == []
    before = committed(store)
    (store.path / "refs/tiny/dpo").unlink()
    cut = max(store.path.glob("objects/*/*"))
    cut.chmod(0o644)
    cut.write_bytes(cut.read_bytes()[:-1])
    flawed = seen(store, before, tmp_path / "none")
    assert set(flawed["lost"]) == {"refs/tiny/dpo", str(cut.relative_to(store.path))} and len(flawed["damaged"]) == 1


@pytest.mark.slow
def test_a_merge(pipeline: Pipeline, tmp_path: Path) -> None:
    """Killed while it merges and commits, and then while it exports: the folder is not there, or whole."""
    out, words = tmp_path / "exported", ["merge", "tiny/dpo", "--name", "merged", "--threads", 1]
    merged = killed(pipeline.store, out, [20, 50], *words)
    exported = killed(pipeline.store, out, range(3, 300, 5), *words, "--out", out)
    assert len(merged) == 3 and len(exported) > 3 and exported[-1]["names"].count("merged") == 1
    assert all(f["out"] in (None, exported[-1]["out"]) for f in exported) and is_export(
        out, made := pipeline.store.resolve("merged")
    )
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-1])
    assert not is_export(out, made), "the control: a half-written folder is seen"


if __name__ == "__main__":
    work(Store(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4:])
