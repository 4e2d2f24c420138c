"""Whole stages under torchrun: its exit code, one artifact whichever process is asked, and what is left when one of
them is killed.

The worker is this file run as a script: stages in a row in one process, as the Python API and recipes run them.

What two processes give is what one gives but for the order in which gradients are added, which rounding sees: the
weights are equal to 1e-6 in fp32, the digest is another one. PPO beyond that: every process samples its share of the
prompts by its own draws.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from transformers import PreTrainedModel

from align import dpo, evaluate, ppo, reward, sft
from align.ground.errors import Stopped
from align.parallel.shards import Shards
from align.stage.ahead.dry_run import plan
from align.stage.question import prepare
from align.store import Store, live_runs
from tests.conftest import Pipeline
from tests.training.test_distributed import two_ranks

ROOT = Path(__file__).parents[2]
COMMON = {"precision": "fp32", "threads": 1, "max_steps": 2, "batch_size": 4}
ROLLOUTS = {"rollout_size": 8, "max_new_tokens": 4, "trust_reward": True}
MADE = ("sft", "sft", "reward", "evaluate", "dpo", "ppo", "dpo", "ppo")


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
    made = [*first, second, third]
    for _ in range(2):
        made.append(dpo.run(dpo.Config(parent="sft", data=pairs, name="dpo", **COMMON), store))  # type: ignore[arg-type]
        made.append(
            ppo.run(ppo.Config(parent="sft", reward="reward", data=prompts, name="ppo", **ROLLOUTS, **COMMON), store)
        )  # type: ignore[arg-type]
    (folder / os.environ.get("RANK", "one")).write_text(json.dumps([str(artifact) for artifact in made]))
    if os.environ.get("WORLD_SIZE") == "2":
        (folder / f"shards-{os.environ['RANK']}").write_text(json.dumps(in_shards(folder, demos, pairs, base)))


def in_shards(folder: Path, demos: Path, pairs: Path, base: str) -> list[object]:
    """SFT and DPO with the base cut over the processes: their digests, and the share of its numbers that this process
    holds as soon as they are read, which together are those of the file."""
    from align.models import in_parts

    store, held, load = Store(folder / "cut"), [], in_parts.load_in_parts
    weights = load_torch(Path(base) / "model.safetensors")

    def noting(*args: Any) -> tuple[PreTrainedModel, Shards]:
        loaded = load(*args)
        assert loaded is not None
        model, shards = loaded
        local = {key: getattr(p.data, "to_local", lambda p=p: p)() for key, p in model.named_parameters()}
        held.append(sum(map(torch.numel, local.values())) / model.num_parameters())
        assert not any(torch.equal(part, weights[key]) for key, part in local.items() if part.ndim > 1), "the control"
        with shards.whole():
            assert all(torch.equal(p, weights[key]) for key, p in model.named_parameters())
        return model, shards

    in_parts.load_in_parts = noting  # type: ignore[assignment]
    settings = {**COMMON, "parallel": "shard"}
    first = sft.run(sft.Config(base=base, data=demos, name="sft", **settings), store)  # type: ignore[arg-type]
    second = dpo.run(dpo.Config(parent="sft", data=pairs, name="dpo", **settings), store)  # type: ignore[arg-type]
    return [str(first), str(second), *held]


def torchrun(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def base_of(pipeline: Pipeline, folder: Path) -> Path:
    base = folder / "base"
    return base if base.exists() else pipeline.store.materialise(pipeline.made["pretrain"], base, "model")


@pytest.mark.slow
def test_stages_in_a_row_end_with_0(trained: Pipeline, tmp_path: Path) -> None:
    process = torchrun("-m", "tests.stages.test_torchrun", tmp_path, trained.recipe.parent, base_of(trained, tmp_path))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    ours, theirs = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    store = Store(tmp_path / "store")
    assert ours == theirs == [str(store.resolve(name)) for name in MADE] and store.verify() == []
    assert errors.count("done before, skipped") == 3 and len(list(store.artifacts())) == 5
    for rank in "01":  # the base in shards: nobody can tell from the artifacts, though each held but half of it
        *made, held, again = json.loads((tmp_path / f"shards-{rank}").read_text())
        assert made == [str(store.resolve(name)) for name in ("sft", "dpo")] and held == again < 0.51
    alone = Store(tmp_path / "alone/store")
    alone.path.parent.mkdir()
    work(tmp_path / "alone", trained.recipe.parent, str(base_of(trained, tmp_path)))
    for name in ("sft", "reward", "dpo"):
        assert difference(name, store, alone) < 1e-6 < 1e-5 < moved(name, store) and store.resolve(
            name
        ) != alone.resolve(name)
    assert difference("ppo", store, alone) > 1e-5, "the control: other answers, another policy"


def difference(name: str, *stores: Store) -> float:
    """The largest between two stores' adapters of that name."""
    ours, theirs = (load_file(s.folder(s.resolve(name)) / "adapters/0/adapter_model.safetensors") for s in stores)
    assert ours.keys() == theirs.keys()
    return max(float(abs(ours[key] - theirs[key]).max()) for key in ours)


def moved(name: str, store: Store) -> float:
    """How far training took the factors that begin as zeros."""
    weights = load_file(store.folder(store.resolve(name)) / "adapters/0/adapter_model.safetensors")
    return max(float(abs(weights[key]).max()) for key in weights if "lora_B" in key)


STEPS = 40


def endless(folder: Path, pipeline: Pipeline, steps: int) -> list[object]:
    """SFT that takes long enough to be stopped."""
    where = [
        "--base",
        base_of(pipeline, folder),
        "--data",
        pipeline.recipe.parent / "sft.jsonl",
        "--store",
        folder / "s",
        "--name",
        "x",
    ]
    how = ["--precision", "fp32", "--batch_size", "2", "--logging_steps", "1", "--max_steps", steps]
    return ["-m", "align.sft", *where, *how]


def settings_of(folder: Path, pipeline: Pipeline) -> sft.Config:
    """The same for one process."""
    how = {"precision": "fp32", "threads": 1, "batch_size": 2, "logging_steps": 1, "max_steps": STEPS}
    return sft.Config(
        base=str(base_of(pipeline, folder)), data=str(pipeline.recipe.parent / "sft.jsonl"), name="x", **how
    )  # type: ignore[arg-type]


def seen(process: subprocess.Popen[str], what: Callable[[], bool]) -> bool:
    """Wait for it; False where the process ends without it."""
    while process.poll() is None:
        if what():
            return True
        time.sleep(0.02)
    return False


def trains(process: subprocess.Popen[str], folder: Path, after: int = 0) -> None:
    """Wait until it has taken a step beyond `after`, as the run's news say: lines of progress come after silence."""
    seen(process, lambda: any(step > after for run in live_runs(Store(folder / "s")) for step, _ in run.rows))


def begins_behind(process: subprocess.Popen[str], folder: Path, step: int) -> bool:
    """Whether its news say that it goes on behind that step."""
    line = json.dumps({"steps": STEPS, "from": step})
    return seen(process, lambda: any(line in path.read_text() for path in folder.glob("s/runs/*/live.jsonl")))


def checkpoint(folder: Path) -> int:
    (found,) = (folder / "s/runs").glob("*/checkpoints/checkpoint-*")
    assert not list((folder / "s/refs").glob("x")) and Store(folder / "s").verify() == []
    return int(found.name.split("-")[1])


@pytest.mark.slow
def test_a_stop_is_gone_on_from(trained: Pipeline, tmp_path: Path) -> None:
    """SIGTERM leaves a checkpoint, and the same command goes on. Processes that a scheduler starts itself end with 75;
    torchrun ends with 1 whatever its processes say, and what `--dry-run` plans tells that this was no failure. The
    truth is one process that nobody stops."""
    words = endless(tmp_path, trained, STEPS)
    command = [sys.executable, *map(str, [*words, "--checkpoint_steps", "1000"])]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(command, cwd=ROOT, env=shared | e, text=True, stderr=subprocess.PIPE) for e in two_ranks()
    ]
    trains(ranks[0], tmp_path)
    for process in ranks:
        process.terminate()
    ended = {rank: process.communicate(timeout=60)[1] for rank, process in enumerate(ranks)}
    assert [process.returncode for process in ranks] == [Stopped.exit_code] * 2, ended
    first = checkpoint(tmp_path)

    process = torchrun(*words)
    trains(process, tmp_path, first)
    process.terminate()
    errors = process.communicate(timeout=60)[1]
    second = checkpoint(tmp_path)
    assert process.returncode == 1 and first < second < STEPS
    assert errors.count(f"x stopped at step {second} of {STEPS}; run the same command to go on from there.") == 1, (
        errors
    )
    config, store, alone = settings_of(tmp_path, trained), Store(tmp_path / "s"), Store(tmp_path / "alone")
    assert plan(sft.STAGE, config, store).says == [f"x: run, nothing has its name yet; it goes on from step {second}"]

    process = torchrun(*words)
    assert begins_behind(process, tmp_path, second)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    sft.run(config, alone)
    assert difference("x", store, alone) < 1e-6 < 1e-4 < moved("x", alone), (
        difference("x", store, alone),
        moved("x", alone),
    )
    assert [
        row["step"] for row in map(json.loads, store.read(store.resolve("x"), "history.jsonl").splitlines())
    ] == list(range(1, STEPS + 1))


def test_ranks_are_in_the_key_of_what_draws_by_rank(trained: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO of two processes is another question than that of one. The control: SFT is one question for both."""
    store, data = trained.store, trained.recipe.parent
    policy = ppo.Config(parent="tiny/sft", reward="tiny/reward", data=data / "prompts.jsonl", **ROLLOUTS, **COMMON)  # type: ignore[arg-type]
    demos = sft.Config(parent="tiny/pretrain", data=data / "sft.jsonl")  # type: ignore[arg-type]
    alone = prepare(ppo.STAGE, policy, store), prepare(sft.STAGE, demos, store)
    monkeypatch.setenv("WORLD_SIZE", "2")
    both = prepare(ppo.STAGE, policy, store), prepare(sft.STAGE, demos, store)
    assert both[0].key != alone[0].key and both[0].settings == alone[0].settings | {"ranks": 2}
    assert both[1].key == alone[1].key


def children(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
    return sorted(map(int, found.split()))


@pytest.mark.slow
def test_a_killed_process_ends_the_other(trained: Pipeline, tmp_path: Path) -> None:
    """Within 20 s, with an exit code that says so, and nothing of it is left running."""
    process = torchrun(*endless(tmp_path, trained, 100_000), "--checkpoint_steps", "1")
    trains(process, tmp_path)
    begun, ranks = time.monotonic(), children(process)
    os.kill(ranks[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - begun < 20 and process.returncode == 1, errors[-2000:]
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks) and Store(tmp_path / "s").verify() == []


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
