"""A run that was stopped or killed and started again gives the artifact of an uninterrupted one, byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch

from align import reward
from align.core.trainer import StageTrainer
from align.errors import AlignError, Stopped
from tests.conftest import ROOT, Pipeline
from tests.stages.helpers import committed, forget, run, settings

LONGER: dict[str, Any] = {"max_steps": 4, "logging_steps": 3}
"""Stopped after two steps the first line of metrics is half gathered; a PPO rollout of the recipe lasts two steps."""


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


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo", "ppo"])
def test_stopped_and_started_again(stage: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in step 2 of 4: exit code 75, nothing committed, and the second run takes only what is left."""
    before = committed(pipeline.store)
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Stopped, match=f"tiny/{stage} stopped at step 2 of 4; run the same command to go on") as stopped:
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
    assert resumed.digest != pipeline.made[stage].digest  # negative control: two steps more are another result


@pytest.mark.parametrize("stage", ["reward", "ppo"])
def test_killed_between_checkpoints(stage: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in step 4, after the checkpoint of step 2: steps 3 and 4 are taken again."""
    with monkeypatch.context() as patch:
        interrupt(patch, 4, die)
        with pytest.raises(OSError, match="pulled the plug"):
            run(pipeline, stage, **LONGER, checkpoint_steps=2)
    resumed = run(pipeline, stage, **LONGER)
    forget(pipeline.store, resumed)
    assert run(pipeline, stage, **LONGER).digest == resumed.digest


def test_killed_after_the_last_step(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward's bias is set from samples drawn after training; drawn again after a kill they are the same."""
    forget(pipeline.store, pipeline.made["reward"])
    with monkeypatch.context() as patch:
        patch.setattr(reward, "centre_on_parent", lambda *_: die())
        with pytest.raises(OSError, match="pulled the plug"):
            run(pipeline, "reward", checkpoint_steps=1)
    assert run(pipeline, "reward").digest == pipeline.made["reward"].digest


def test_ctrl_c_from_outside(pipeline: Pipeline) -> None:
    """SIGINT to `python -m align.sft`: exit code 75 and one clear line; the same command then goes on."""
    data, store = pipeline.recipe.parent / "sft.jsonl", pipeline.store
    flags = f"--parent tiny/pretrain --data {data} --store {store.path} --name long --precision fp32 --threads 1 --max-steps 5000"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "align.sft", *flags.split(), "--logging-steps", "1", "--checkpoint-steps", "1"]
    before = committed(store)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stdout is not None
    for line in process.stderr:
        if line.startswith("long 1/5000"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    last = err.splitlines()[-1]
    assert last.startswith("long stopped at step ") and last.endswith(" of 5000; run the same command to go on from there.")
    assert "Traceback" not in err and out == ""
    assert committed(store) == before
    (kept,) = store.path.glob("runs/*/checkpoints/checkpoint-*")
    assert int(kept.name.split("-")[1]) == int(last.split()[4])


# ---- what is not finite ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "term"), [("sft", "nll"), ("reward", "bradley_terry"), ("dpo", "dpo"), ("ppo", "policy, value")])
def test_a_nan_stops_the_run_and_is_named(stage: str, term: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in a trained tensor before step 2: the message names step, term and tensor, nothing is committed, exit code 1."""
    before = committed(pipeline.store)
    original, step = StageTrainer.training_step, [0]

    def training_step(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        step[0] += 1
        if step[0] == 2:
            for name, parameter in self.roles.trainable().items():
                if "lora_B" in name or name.startswith("heads"):
                    parameter.data.fill_(torch.nan)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", training_step)
    with pytest.raises(
        AlignError, match=rf"step 2: the loss is not finite \(term {term}\); the first trained tensor that is not finite"
    ) as e:
        run(pipeline, stage, epochs=1.5)
    assert e.value.exit_code == 1
    assert committed(pipeline.store) == before


def test_a_gradient_that_overflows_in_the_last_step_is_not_committed(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the last step is finite, what the optimizer made of it is not."""
    before = committed(pipeline.store)
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        if self.state.global_step == 1:
            next(p for n, p in self.roles.trainable().items() if "lora_B" in n).grad[0] = torch.inf
        return loss

    monkeypatch.setattr(StageTrainer, "training_step", training_step)
    with pytest.raises(AlignError, match=r"after the last step .*lora_[AB]\.policy\.weight is not finite"):
        run(pipeline, "sft", epochs=1.5)
    assert committed(pipeline.store) == before


def test_evaluation_mode_after_training(pipeline: Pipeline) -> None:
    """With dropout on, held-out loss and the reload check are computed without it; the check is exact, so it would fail otherwise."""
    lora = settings(pipeline, "sft").lora.model_copy(update={"dropout": 0.5})
    artifact = run(pipeline, "sft", lora=lora, parent="tiny/pretrain")
    shape = json.loads(pipeline.store.read(artifact, "adapters/0/adapter_config.json"))
    assert shape["lora_dropout"] == 0.5
    child = run(pipeline, "dpo", parent=artifact.digest, adapter="continue", name="child")
    assert json.loads(pipeline.store.read(child, "adapters/0/adapter_config.json"))["lora_dropout"] == 0.0
