"""Whole stages under torchrun: its exit code, one artifact whichever process is asked, and what is left when one of
them is killed.

The worker is this file run as a script: stages in a row in one process, as the Python API and recipes run them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from align import evaluate, reward, sft
from align.store import Store
from tests.conftest import Pipeline

ROOT = Path(__file__).parents[2]
COMMON = {"precision": "fp32", "threads": 1, "max_steps": 2, "batch_size": 4}


def work(folder: Path, data: Path, base: str) -> None:
    """SFT, the same again, a reward model and an evaluation, which trains nothing; the digests that this process
    sees."""
    store = Store(folder / "store")
    demos, pairs, prompts = (data / f"{name}.jsonl" for name in ("sft", "pairs", "prompts"))
    first = [sft.run(sft.Config(base=base, data=demos, name="sft", **COMMON), store) for _ in range(2)]  # type: ignore[arg-type]
    settings = {"centre_samples": 4, "centre_max_new_tokens": 2, **COMMON}
    second = reward.run(reward.Config(parent="sft", data=pairs, name="reward", **settings), store)  # type: ignore[arg-type]
    asked = {
        "compare": ["sft"],
        "reward": "reward",
        "data": prompts,
        "limit": 2,
        "max_new_tokens": 2,
        "precision": "fp32",
    }
    third = evaluate.run(evaluate.Config(**asked), store)  # type: ignore[arg-type]
    (folder / os.environ["RANK"]).write_text(json.dumps([str(artifact) for artifact in (*first, second, third)]))


def torchrun(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def base_of(pipeline: Pipeline, folder: Path) -> Path:
    return pipeline.store.materialise(pipeline.made["pretrain"], folder / "base", "model")


def test_stages_in_a_row_end_with_0(trained: Pipeline, tmp_path: Path) -> None:
    process = torchrun("-m", "tests.stages.test_torchrun", tmp_path, trained.recipe.parent, base_of(trained, tmp_path))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    ours, theirs = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    store = Store(tmp_path / "store")
    assert (
        ours == theirs == [str(store.resolve(name)) for name in ("sft", "sft", "reward", "evaluate")]
        and store.verify() == []
    )
    assert errors.count("done before, skipped") == 1


def children(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
    return sorted(map(int, found.split()))


def test_a_killed_process_ends_the_other(trained: Pipeline, tmp_path: Path) -> None:
    """Within 20 s, with an exit code that says so, and nothing of it is left running."""
    words = [
        "-m",
        "align.sft",
        "--base",
        base_of(trained, tmp_path),
        "--data",
        trained.recipe.parent / "sft.jsonl",
        "--store",
        tmp_path / "s",
    ]
    words += [
        "--precision",
        "fp32",
        "--batch_size",
        "2",
        "--checkpoint_steps",
        "1",
        "--logging_steps",
        "1",
        "--name",
        "x",
        "--max_steps",
    ]
    process = torchrun(*words, 100_000)
    assert process.stderr
    for line in process.stderr:
        if "/100000 · loss" in line:
            break
    begun, ranks = time.monotonic(), children(process)
    os.kill(ranks[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - begun < 20 and process.returncode == 1, errors[-2000:]
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks) and Store(tmp_path / "s").verify() == []


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
