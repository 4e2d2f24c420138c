"""A run that was stopped or killed and started again gives the artifact of an uninterrupted one, byte for byte."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from align import reward
from align.ground.errors import AlignError, Stopped
from align.ground.ranks import GONE
from align.rl.collect import Rollouts
from align.training import checkpoint, processes, trainer
from align.training.trainer import StageTrainer
from tests.benchmarks import kills
from tests.conftest import ROOT, Pipeline
from tests.stages.helpers import GROUPS, committed, forget, history, run, settings

LONGER: dict[str, Any] = {"max_steps": 4, "logging_steps": 3}
"""Stopped after two steps the first line of metrics is half gathered."""


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, act: Any) -> None:
    """Call `act` once, in the middle of optimizer step `step`, counted from 1."""
    original = StageTrainer.training_step
    left = [step]

    def training_step(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            act()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", training_step)


def die() -> None:
    raise OSError("pulled the plug")


@pytest.mark.parametrize(
    "stage",
    [
        "sft",
        "ppo",
        *(
            pytest.param(s, marks=pytest.mark.slow)
            for s in ("pretrain", "reward", "dpo", "grpo", "rloo", "reinforce_pp")
        ),
    ],
)
def test_stopped_and_started_again(stage: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in step 2 of 4: exit code 75, nothing committed, and the second run takes only what is left."""
    before = committed(pipeline.store)
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(
            Stopped, match=f"tiny/{stage} stopped at step 2 of 4; run the same command to go on"
        ) as stopped:
            run(pipeline, stage, **LONGER)
    assert stopped.value.exit_code == 75
    assert committed(pipeline.store) == before
    taken: list[int] = []
    with monkeypatch.context() as patch:
        interrupt(patch, 1, lambda: taken.append(1))
        interrupt(patch, 2, lambda: taken.append(2))
        interrupt(patch, 3, lambda: taken.append(3))
        resumed = run(pipeline, stage, **LONGER)
    assert sorted(taken) == [1, 2]  # two of the four steps were left
    forget(pipeline.store, resumed)
    assert run(pipeline, stage, **LONGER).digest == resumed.digest
    shorter = run(pipeline, stage, **{**LONGER, "max_steps": 2})
    assert resumed.files != shorter.files  # negative control: two steps more are another result


def test_a_second_ctrl_c_says_what_is_kept(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends within the step, and the step before, or none, is gone on from: to the same digest."""
    before, handler = committed(pipeline.store), signal.getsignal(signal.SIGINT)
    changes = LONGER | {"name": "twice", "checkpoint_steps": 2}

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    goes_on = "twice stopped at once; the same command goes on from"
    for step, kept in ((1, "its first step: no checkpoint was written yet."), (4, "step 2, whose checkpoint is kept.")):
        with monkeypatch.context() as patch:
            interrupt(patch, step, twice)
            with pytest.raises(Stopped) as stopped:
                run(pipeline, "sft", **changes)
        assert str(stopped.value) == f"{goes_on} {kept}" and stopped.value.exit_code == 75
    assert committed(pipeline.store) == before
    assert signal.getsignal(signal.SIGINT) is handler
    taken: list[int] = []
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: taken.append(2))
        interrupt(patch, 3, lambda: taken.append(3))
        resumed = run(pipeline, "sft", **changes)
    assert taken == [2]  # two steps were left
    forget(pipeline.store, resumed)
    assert run(pipeline, "sft", **changes).digest == resumed.digest


@pytest.mark.slow
def test_a_running_margin_goes_on(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """beta-DPO's, which decides the beta of the steps that are left."""
    changes: dict[str, Any] = {**LONGER, "dynamic_beta": 5.0, "beta_momentum": 0.5, "learning_rate": 0.01}
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Stopped):
            run(pipeline, "dpo", **changes)
    resumed = run(pipeline, "dpo", **changes)
    forget(pipeline.store, resumed)
    assert run(pipeline, "dpo", **changes).digest == resumed.digest
    assert resumed.files != run(pipeline, "dpo", **changes | {"beta_momentum": 0.0}).files  # negative control


IN_ROLLOUT: dict[str, Any] = {
    **dict(
        max_steps=20,
        rollout_size=16,
        batch_size=8,
        logging_steps=3,
        kl_target=0.5,
        kl_horizon=40,
        normalise_rewards="running",
    ),
    **dict(length_penalty=0.05, entropy_coef=0.01),
}
"""Eight steps a rollout, and all that is carried from rollout to rollout."""


def rollouts_begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which rollouts are sampled from now on."""
    begun: list[int] = []
    collect = Rollouts.collect

    def noting(self: Rollouts, index: int) -> Any:
        begun.append(index)
        return collect(self, index)

    monkeypatch.setattr(Rollouts, "collect", noting)
    return begun


@pytest.mark.parametrize("stage", ["ppo", *(pytest.param(s, marks=pytest.mark.slow) for s in GROUPS)])
def test_stopped_inside_a_rollout(stage: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty steps are twelve and eight after a resume: the same bytes, metrics included, and no rollout is sampled
    twice.

    PPO is stopped while its value warms up, with no state of the policy in the optimizer.
    """
    changes = IN_ROLLOUT | ({"ppo_epochs": 4, "value_warmup": 2} if stage == "ppo" else {"rollout_epochs": 4})
    with monkeypatch.context() as patch:
        begun = rollouts_begun(patch)
        whole = run(pipeline, stage, **changes)
        in_one_go = list(begun)
        forget(pipeline.store, whole)
        begun.clear()
        with monkeypatch.context() as again, pytest.raises(Stopped, match="stopped at step 12 of 20"):
            interrupt(again, 12, lambda: signal.raise_signal(signal.SIGINT))
            run(pipeline, stage, **changes)
        (kept,) = pipeline.store.path.glob("runs/*/checkpoints/checkpoint-12")
        saved = torch.load(kept / "source.pt", weights_only=True)
        # stopped inside a rollout
        assert len(saved["examples"]["shared"]) > 0 and saved["moments"]["count"] == 16 * len(begun)
        resumed = run(pipeline, stage, **changes)
    assert begun == in_one_go == list(range(len(begun))) and len(begun) >= 3
    assert resumed.digest == whole.digest
    rows = history(whole, pipeline.store)
    assert len({row["kl_coef"] for row in rows}) > 1 and rows[0]["kl_coef"] == settings(pipeline, stage).kl_coef


@pytest.mark.parametrize(
    "forgotten", ["kl_coef", *(pytest.param(f, marks=pytest.mark.slow) for f in ("examples", "moments"))]
)
def test_what_a_checkpoint_forgets_about_a_rollout_shows(
    forgotten: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the rollout in progress, the moments or the price of KL the resumed run is another."""
    changes = IN_ROLLOUT | {"ppo_epochs": 4}
    whole = run(pipeline, "ppo", **changes)
    forget(pipeline.store, whole)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupt(patch, 12, lambda: signal.raise_signal(signal.SIGINT))
        run(pipeline, "ppo", **changes)
    load = Rollouts.load_state_dict

    def forgetting(self: Rollouts, state: dict[str, Any]) -> None:
        fresh = {
            "moments": {"count": 0, "mean": 0.0, "squares": 0.0},
            "kl_coef": self.kl.coef,
            "examples": state["examples"],
        }
        if forgotten == "examples":  # another rollout in its place
            ids = state["examples"]["ids"]
            fresh["examples"] = {**state["examples"], "ids": torch.where(ids > 10, ids - 1, ids)}
        load(self, state | {forgotten: fresh[forgotten]})

    with monkeypatch.context() as patch:
        patch.setattr(Rollouts, "load_state_dict", forgetting)
        assert run(pipeline, "ppo", **changes).files != whole.files


@pytest.mark.parametrize(
    "stage", ["ppo", *(pytest.param(s, marks=pytest.mark.slow) for s in ("pretrain", "sft", "reward", "dpo"))]
)
def test_killed_between_checkpoints(stage: str, pipeline: Pipeline) -> None:
    """kill -9 in step 4, after the checkpoint of step 2: steps 3 and 4 are taken again, to the uninterrupted run's
    digest.

    `python -m tests.benchmarks.kills` does it at random moments.
    """
    words = kills.command(pipeline.recipe, stage, 4, checkpoint_steps=2)
    before = committed(pipeline.store)
    kills.killed(words, pipeline.store.path, 4, 0.0)
    assert committed(pipeline.store) == before and kills.checkpoint_of(pipeline.store.path) == 2
    resumed = run(pipeline, stage, max_steps=4, logging_steps=2)
    forget(pipeline.store, resumed)
    assert run(pipeline, stage, max_steps=4, logging_steps=2).digest == resumed.digest


def test_killed_while_a_checkpoint_is_written(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of step 4 is half there; the run goes on from the one of step 2, and what it half wrote is gone."""
    changes: dict[str, Any] = {"max_steps": 6, "checkpoint_steps": 2}
    save, left = torch.save, [4]  # source and optimizer, twice

    def torn(content: Any, path: Any, **kwargs: Any) -> None:
        save(content, path, **kwargs)
        left[0] -= "source" in str(path) or "optimizer" in str(path)
        if left[0] == 0:
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises(KeyboardInterrupt):
            run(pipeline, "sft", **changes)
    (half,) = pipeline.store.path.glob("runs/*/checkpoints/unfinished/checkpoint-4")
    assert kills.checkpoint_of(pipeline.store.path) == 2
    taken: list[int] = []
    with monkeypatch.context() as patch:
        interrupt(patch, 5, lambda: taken.append(5))
        resumed = run(pipeline, "sft", **changes)
    assert not taken and not half.exists()  # four steps were left, no fifth
    forget(pipeline.store, resumed)
    assert run(pipeline, "sft", **changes).digest == resumed.digest


def checkpoints_of(
    pipeline: Pipeline, stage: str, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[list[int], str]:
    """The steps after which a run wrote a checkpoint, and the digest of what it made."""
    steps: list[int] = []
    keep = checkpoint.keep
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "keep", lambda folder, step: (steps.append(step), keep(folder, step)))
        made = run(pipeline, stage, **changes)
    forget(pipeline.store, made)
    return steps, made.digest


@pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.slow), "ppo"])
def test_when_checkpoints_are_written(stage: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """By steps, by minutes or never, the result is the same; for PPO too, whose rollout is here two steps long."""
    rhythms = {(3, 10.0): [3, 6, 7], (100, 1e-9): [1, 2, 3, 4, 5, 6, 7], (0, 1e-9): [], (100, 10.0): [7]}
    digests = set()
    for (steps, minutes), expected in rhythms.items():
        changes = {"max_steps": 7, "checkpoint_steps": steps, **({"checkpoint_minutes": minutes} if steps else {})}
        found, digest = checkpoints_of(pipeline, stage, monkeypatch, **changes)
        assert found == expected
        digests.add(digest)
    assert len(digests) == 1


@pytest.mark.parametrize("limit", [3_000, pytest.param(45_000, marks=pytest.mark.slow)])
def test_a_full_disk_while_a_checkpoint_is_written(
    limit: int, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may not grow beyond `limit` bytes: torch or safetensors fails in words of its own. One message, and the
    one before is kept."""
    original = StageTrainer._save_checkpoint

    def save(self: StageTrainer, *args: Any) -> None:
        if self.state.global_step < 4:
            return original(self, *args)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            return original(self, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    changes: dict[str, Any] = {"max_steps": 6, "checkpoint_steps": 2}
    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "_save_checkpoint", save)
        with pytest.raises(
            AlignError,
            match=r"the checkpoint of step 4 cannot be written \(.*MiB are free there\)\. The one of step 2 is kept",
        ):
            run(pipeline, "sft", **changes)
    assert not list(pipeline.store.path.glob("runs/*/checkpoints/unfinished/checkpoint-*"))
    resumed = run(pipeline, "sft", **changes)
    forget(pipeline.store, resumed)
    assert run(pipeline, "sft", **changes).digest == resumed.digest


@pytest.mark.parametrize(("world", "said"), [(2, f"{GONE}; see its message"), (1, "of step 2 cannot be written")])
def test_a_rank_is_lost_while_a_checkpoint_is_written(
    world: int, said: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of gloo's own error; the control is a process that is alone, which misses nobody."""

    def lost() -> None:
        monkeypatch.setattr(processes, "rank_and_world", lambda: (0, world))
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer")

    monkeypatch.setattr(trainer, "barrier", lost)
    with pytest.raises(AlignError, match=said):
        run(pipeline, "sft", max_steps=3, checkpoint_steps=2)


def test_cost_adds_up(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds and tokens are those of both runs, up to the checkpoint that the second one went on from."""
    with monkeypatch.context() as patch:
        interrupt(patch, 3, die)
        patch.setattr(StageTrainer, "seconds", property(lambda self: 1000.0))
        with pytest.raises(OSError, match="pulled the plug"):
            run(pipeline, "sft", max_steps=4, checkpoint_steps=2)
    resumed = run(pipeline, "sft", max_steps=4)
    cost = pipeline.store.cost(resumed)
    forget(pipeline.store, resumed)
    whole = pipeline.store.cost(run(pipeline, "sft", max_steps=4))
    assert cost is not None and whole is not None
    assert cost["earlier_seconds"] == 1000.0 and whole["earlier_seconds"] == 0.0
    assert cost["seconds"] > cost["train_seconds"] > 1000.0 > whole["seconds"] > whole["train_seconds"]
    assert cost["tokens"] == whole["tokens"] > 0


def test_killed_after_the_last_step(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward's bias is set from samples drawn after training; drawn again after a kill they are the same."""
    forget(pipeline.store, pipeline.made["reward"])
    with monkeypatch.context() as patch:
        patch.setattr(reward, "centre_on_parent", lambda *_: die())
        with pytest.raises(OSError, match="pulled the plug"):
            run(pipeline, "reward", checkpoint_steps=1)
    assert run(pipeline, "reward").digest == pipeline.made["reward"].digest


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGINT, signal.SIGHUP))]
)
def test_ctrl_c_from_outside(number: signal.Signals, pipeline: Pipeline) -> None:
    """A signal to `python -m align.sft`: exit code 75 and one clear line; the same command then goes on."""
    data, store = pipeline.recipe.parent / "sft.jsonl", pipeline.store
    flags = (
        f"--parent tiny/pretrain --data {data} --store {store.path} --name long --precision fp32 --threads 1 "
        "--max-steps 5000"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "align.sft", *flags.split(), "--logging-steps", "1", "--checkpoint-steps", "1"]
    before = committed(store)
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list(store.path.glob("runs/*/checkpoints/checkpoint-*")):
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    last = err.splitlines()[-1]
    assert last.startswith("long stopped at step ") and last.endswith(
        " of 5000; run the same command to go on from there."
    )
    assert "Traceback" not in err and out == ""
    assert committed(store) == before
    (kept,) = store.path.glob("runs/*/checkpoints/checkpoint-*")
    assert int(kept.name.split("-")[1]) == int(last.split()[4])


# ---- what is not finite ----------------------------------------------------------------------------------------------


def break_at_step_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in trained tensors, from there on."""
    original, step = StageTrainer.training_step, [0]

    def training_step(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        step[0] += 1
        if step[0] == 2:
            for name, parameter in self.roles.trainable().items():
                if "lora_B" in name or name.startswith("heads"):
                    parameter.data.fill_(torch.nan)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", training_step)


@pytest.mark.parametrize(
    ("stage", "term"), [("sft", "nll"), ("reward", "bradley_terry"), ("dpo", "dpo"), ("ppo", "policy, value")]
)
def test_a_nan_stops_the_run_and_is_named(
    stage: str, term: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN in a trained tensor before step 2: the message names step, term and tensor, nothing is committed, exit code
    1."""
    before = committed(pipeline.store)
    break_at_step_2(monkeypatch)
    with pytest.raises(
        AlignError,
        match=rf"/{stage}: step 2: the loss is not finite \(term {term}\); the first trained tensor that is not finite",
    ) as e:
        run(pipeline, stage, weight_decay=0.1)
    assert e.value.exit_code == 1 and "checkpoint" not in str(e.value)  # none is written so early
    assert committed(pipeline.store) == before


def test_a_nan_behind_a_checkpoint_says_that_it_is_kept(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controls are the runs above, which have none."""
    break_at_step_2(monkeypatch)
    with pytest.raises(AlignError, match=r"Lower learning_rate or max_grad_norm; the checkpoint of step 1 is kept\.$"):
        run(pipeline, "sft", weight_decay=0.1, checkpoint_steps=1)


def test_a_gradient_that_overflows_in_the_last_step_is_not_committed(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the last step is finite, what the optimizer made of it is not."""
    before = committed(pipeline.store)
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        if self.state.global_step == 1:
            next(p for n, p in self.roles.trainable().items() if "lora_B" in n).grad[0] = torch.inf
        return loss

    monkeypatch.setattr(StageTrainer, "training_step", training_step)
    with pytest.raises(AlignError, match=r"/sft: after the last step .*lora_[AB]\.policy\.weight is not finite"):
        run(pipeline, "sft", weight_decay=0.1)
    assert committed(pipeline.store) == before


def test_evaluation_mode_after_training(pipeline: Pipeline) -> None:
    """With dropout on, held-out loss and the reload check are computed without it; the check is exact, so it would fail
    otherwise."""
    adapter = settings(pipeline, "sft").adapter.model_copy(update={"dropout": 0.5})
    artifact = run(pipeline, "sft", adapter=adapter, parent="tiny/pretrain")
    shape = json.loads(pipeline.store.read(artifact, "adapters/0/adapter_config.json"))
    assert shape["lora_dropout"] == 0.5
    child = run(pipeline, "dpo", parent=artifact.digest, parent_adapter="continue", name="child")
    assert json.loads(pipeline.store.read(child, "adapters/0/adapter_config.json"))["lora_dropout"] == 0.0
