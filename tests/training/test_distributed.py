"""Two gloo processes against one: every stage gets the same gradients, and the same weights after two optimizer steps.

The worker is this file run as a script; under torchrun's environment variables `StageTrainer` is DDP.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.training import processes

ROOT = Path(__file__).parents[2]
STAGES = ("sft", "reward", "dpo", "kept", "ppo", "grpo", "vespo", "rloo")


def work(out: Path) -> None:
    """Per stage: train two steps of plain SGD, keep the gradients of the first and the weights after both."""
    from align import dpo, grpo, ppo, reward, rloo, sft
    from align.models.trunk_cache import Keeper, find_trunk
    from align.training.plan import Plan
    from align.training.processes import rank_and_world
    from align.training.trainer import StageTrainer, fit
    from tests.models.models import settings
    from tests.models.test_trunk import layered
    from tests.training.test_invariants import (
        DPO,
        GRPO,
        PPO,
        RLOO,
        groups,
        pairs,
        rollout_columns,
        two_roles,
        with_random_reference,
    )

    losses = {
        "sft": (sft.loss, pairs(5)),
        "reward": (lambda r, b: reward.loss(r, b, 0.05), pairs(5)),
        "dpo": (lambda r, b: dpo.loss(r, b, DPO), with_random_reference(pairs(5))),
        # adapters on the top layer, what enters it kept
        "kept": (lambda r, b: dpo.loss(r, b, DPO), with_random_reference(pairs(5))),
        "ppo": (lambda r, b: ppo.loss(r, b, PPO), rollout_columns(pairs(5))),
        "grpo": (lambda r, b: grpo.loss(r, b, GRPO["sequence"], 0.2), groups(5)),
        "vespo": (lambda r, b: grpo.loss(r, b, GRPO["vespo"], 0.2), groups(5)),
        "rloo": (lambda r, b: rloo.loss(r, b, RLOO), groups(5)),
    }
    trains = {stage: (["policy"], []) for stage in STAGES} | {
        "reward": (["policy"], ["policy"]),
        "ppo": (["policy", "value"], ["value"]),
    }
    found: dict[str, Tensor] = {}
    step = StageTrainer.training_step

    def noting(self, model, inputs, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        loss = step(self, model, inputs, num_items_in_batch)
        for key, p in self.roles.trainable().items():
            found.setdefault(f"{stage}/gradient/{key}", p.grad.clone())
        return loss

    StageTrainer.training_step = noting  # type: ignore[method-assign]
    # three records a step in micro-batches of one: the second of two processes has a void one
    config = settings(reward.Config, learning_rate=0.05, head_learning_rate=0.05, optimizer="sgd", logging_steps=1)
    for stage in STAGES:
        loss, examples = losses[stage]
        roles = layered() if stage == "kept" else two_roles()
        adapters, heads = trains[stage]
        roles.train_only(*adapters, heads=heads)
        plan = Plan(examples, batch_size=3, epochs=1, max_steps=2, tokens_per_microbatch=1, seed=0)
        if stage == "kept":
            assert find_trunk(roles, "policy") == ""
            mine = sorted(plan.looks())
            assert len(mine) < len(examples) or int(os.environ.get("WORLD_SIZE", "1")) == 1
            for i, example in zip(mine, Keeper(roles, "policy", 64)([examples[i] for i in mine]), strict=True):
                examples[i] = example
        history, _ = fit(roles, loss, plan, config, title=stage, checkpoints=Path(tempfile.mkdtemp()))
        found.update({f"{stage}/weights/{k}": p.detach().clone() for k, p in roles.trainable().items()})
        for name in history[0].keys() - {"step", "learning_rate"}:
            found[f"{stage}/history/{name}"] = torch.tensor([row[name] for row in history], dtype=torch.float64)
    rank, world = rank_and_world()
    assert world == int(os.environ.get("WORLD_SIZE", "1"))
    save_file(found, out / f"{world}-{rank}.safetensors")
    if world > 1:
        torch.distributed.destroy_process_group()


def start(module: str, out: Path, *environments: dict[str, str]) -> None:
    """Run a module as a script on `out`, once in each environment, all at the same time."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(out)], cwd=ROOT, env={**shared, **e}, stderr=subprocess.PIPE
        )
        for e in environments
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors.decode()[-3000:]
    finally:
        for process in running:
            process.kill()


def two_ranks() -> list[dict[str, str]]:
    """What torchrun would tell two processes on one machine."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    return [{"RANK": str(r), "LOCAL_RANK": str(r), **shared} for r in range(2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """What each process of each run found, as "WORLD-RANK"."""
    out = tmp_path_factory.mktemp("ranks")
    start("tests.training.test_distributed", out, {}, *two_ranks())
    return {path.stem: load_file(path) for path in out.iterdir()}


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_equal_one(found: dict[str, dict[str, Tensor]], stage: str) -> None:
    """Gradients to 1e-6 relative, and weights and logged metrics after two steps."""
    one = {k: v for k, v in found["1-0"].items() if k.startswith(f"{stage}/")}
    for rank in ("2-0", "2-1"):
        for kind in ("gradient", "weights"):
            names = [k for k in one if f"/{kind}/" in k]
            truth, got = (torch.cat([source[k].flatten() for k in names]) for source in (one, found[rank]))
            assert (got - truth).norm() / truth.norm() < 1e-6
    for name in (k for k in one if "/history/" in k):
        torch.testing.assert_close(found["2-0"][name], one[name], rtol=1e-5, atol=1e-7)


def test_the_ranks_had_different_shares(found: dict[str, dict[str, Tensor]]) -> None:
    """Negative control: a gradient that is not exchanged differs, so equal ranks mean that DDP synchronised unequal
    ones."""
    from align import sft
    from align.training.plan import Plan
    from tests.training.test_invariants import pairs, two_roles

    roles = two_roles()
    roles.train_only("policy")
    plan = Plan(pairs(5), batch_size=3, epochs=1, max_steps=2, tokens_per_microbatch=1, seed=0)
    first = next(iter(plan))
    names = [k for k in found["1-0"] if k.startswith("sft/gradient/")]
    truth = torch.cat([found["1-0"][k].flatten() for k in names])
    shares = []
    for rank in range(2):
        for p in roles.trainable().values():
            p.grad = None
        for batch in first.batches[rank::2]:
            sft.loss(roles, batch).scalar(first.counts).backward()
        gradients = {k: p.grad for k, p in roles.trainable().items() if p.grad is not None}
        shares.append(torch.cat([gradients[k.removeprefix("sft/gradient/")].flatten() for k in names]))
    assert (shares[0] + shares[1] - truth).norm() / truth.norm() < 1e-6
    assert (shares[0] - shares[1]).norm() / truth.norm() > 1e-2


if __name__ == "__main__":
    work(Path(sys.argv[1]))


def test_a_group_is_left_also_where_a_signal_comes_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its threads abort the process at its end."""
    registered: list[object] = []

    def stopped(**_: object) -> None:
        assert registered == [processes.leave]
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "world", lambda: 2)
    monkeypatch.setattr(processes.atexit, "register", registered.append)
    monkeypatch.setattr(processes, "PartialState", stopped)
    monkeypatch.setattr(processes.late, "watch", lambda _: None)  # it looks for where they meet
    try:
        processes.from_first("hello")
    except KeyboardInterrupt:
        registered.append("stopped")
    assert registered == [processes.leave, "stopped"]
    processes.leave()  # there is none
