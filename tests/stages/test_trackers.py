"""What a run leaves for people beside its artifact: TensorBoard's events, and curves whose last point is the figure."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from align import sft
from align.ground.errors import InputError, Stopped
from align.store import Artifact
from align.training.telling import tracker_names, trackers
from align.training.trainer import StageTrainer
from tests.conftest import ROOT, Pipeline

COMMON: dict[str, Any] = {"precision": "fp32", "threads": 1, "max_steps": 5, "batch_size": 2}


def train(pipeline: Pipeline, **more: Any) -> Artifact:
    settings = {
        "base": pipeline.made["pretrain"].digest,
        "data": pipeline.recipe.parent / "sft.jsonl",
        "name": "curve",
        **COMMON,
    }
    return sft.run(sft.Config(**(settings | more)), pipeline.store)


def rows(pipeline: Pipeline, artifact: Artifact) -> dict[int, dict[str, float]]:
    lines = pipeline.store.read(artifact, "history.jsonl").decode().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


def test_events_outlive_the_run(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They lie where it is said, hold the history's figures, and show the stage's settings in the place of
    transformers' own: as text, and in the HParams tab."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    made = train(pipeline, report_to=["tensorboard"], logging_steps=1, name="a/curve")
    (events,) = (tmp_path / "runs/a/curve").glob("*/events*")
    said = capsys.readouterr().err.splitlines()  # each path ends its line, where it can be copied
    assert f"a/curve: TensorBoard's events are in {events.parent}" in said
    assert f"a/curve: they are shown by tensorboard --logdir {tmp_path / 'runs'}" in said
    found = EventAccumulator(str(events)).Reload()
    scalars = {tag: [event.step for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert not {"train/total_flos", "train/train_samples_per_second"} & scalars.keys(), "neither is measured"
    assert {"train/train_runtime", "train/guard/warnings"} <= scalars.keys()
    epochs = [event.value for event in found.Scalars("train/epoch")]
    per_epoch = (40 - 2) // 2  # of 2 records each, without those held out
    assert epochs == pytest.approx([step / per_epoch for step in scalars["train/epoch"]]), "of the data, not of the run"
    assert not [tag for tag, steps in scalars.items() if len({*steps}) < len(steps)], "no step stands twice"
    losses = {event.step: event.value for event in found.Scalars("train/loss")}
    assert losses == pytest.approx({step: row["loss"] for step, row in rows(pipeline, made).items()})
    shown = json.loads(found.Tensors("args/text_summary")[0].tensor_proto.string_val[0])
    assert (shown["batch_size"], shown["adapter"]["rank"], shown["data"]) == (
        2,
        16,
        str(pipeline.recipe.parent / "sft.jsonl"),
    )
    assert "per_device_train_batch_size" not in shown
    hparams = found.summary_metadata["_hparams_/session_start_info"].plugin_data
    session = HParamsPluginData.FromString(hparams.content).session_start_info.hparams
    assert hparams.plugin_name == "hparams" and "per_device_train_batch_size" not in session
    assert (
        session["batch_size"].number_value,
        session["adapter.rank"].number_value,
        session["precision"].string_value,
    ) == (2, 16, "fp32")
    assert {name for name in session if name.partition(".")[0] not in shown} == set()
    assert {name.partition(".")[0] for name in session} == set(shown), (
        "every setting, also those that are null or lists"
    )
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    train(pipeline, report_to=["tensorboard"], seed=1)
    assert list((tmp_path / "mine/curve").glob("*/events*")) and not (tmp_path / "runs/curve").exists()


def test_what_a_run_took_is_told_once_and_of_all_its_steps(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in step 2 of 5 and gone on: nothing of it at the stop, at the end the mean of a line a step and the
    seconds of both. Negative control: the mean of the last three steps, which the second process took, is another."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    settings: dict[str, Any] = {"report_to": ["tensorboard"], "logging_steps": 1, "name": "legs", "seed": 3}

    def told() -> list[dict[str, float]]:
        files = sorted(tmp_path.glob("legs/*/events*"), key=lambda file: file.stat().st_mtime_ns)
        found = [EventAccumulator(str(file)).Reload() for file in files]
        tags = [[tag for tag in one.Tags()["scalars"] if tag.startswith("train/train_")] for one in found]
        return [{tag: one.Scalars(tag)[-1].value for tag in some} for one, some in zip(found, tags, strict=True)]

    original = StageTrainer.training_step

    def stops(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1:
            time.sleep(1.0)
            signal.raise_signal(signal.SIGINT)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(StageTrainer, "training_step", stops)
        train(pipeline, **settings)
    assert told() == [{}]
    time.sleep(1.0)  # else both legs have a folder, named after the second
    start = time.monotonic()
    made = train(pipeline, **settings)
    second = time.monotonic() - start
    losses = [row["loss"] for step, row in rows(pipeline, made).items() if step]
    took = told()[-1]
    assert took["train/train_loss"] == pytest.approx(sum(losses) / 5)
    assert took["train/train_loss"] != pytest.approx(sum(losses[2:]) / 3, rel=1e-3)
    assert 1.0 < took["train/train_runtime"] < second + 60
    assert took["train/train_steps_per_second"] == pytest.approx(5 / took["train/train_runtime"])


@pytest.mark.parametrize(
    ("tracker", "reason"),
    [
        ("tensorbord", "did you mean tensorboard?"),
        ("no", "there are azure_ml"),
        ("comet_ml", "the package of comet_ml is not installed here. Install it, or leave comet_ml out."),
    ],
)
def test_a_tracker_that_is_not_there_is_one_sentence(tracker: str, reason: str, pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match=reason):
        train(pipeline, report_to=[tracker])


def test_a_tracker_is_refused_before_torch_is_loaded(trained: Pipeline) -> None:
    """By name and by package. Negative control: what is there is not refused."""
    pairs = str(trained.recipe.parent / "pairs.jsonl")
    said = f"""
import sys
from align import dpo
from align.ground.errors import InputError
from align.store import Store
from align.training.telling import tracker_names
for name in ("tensorbord", "comet_ml"):
    config = dpo.Config(parent="tiny/sft", data={pairs!r}, report_to=[name], seed=99)
    try:
        dpo.run(config, Store({str(trained.store.path)!r}))
    except InputError as error:
        print(error)
tracker_names.check(["tensorboard"])
print(sorted({{"torch", "transformers"}} & {{*sys.modules}}))
"""
    found = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, cwd=ROOT, check=False)
    first, second, loaded = found.stdout.splitlines()
    assert "did you mean tensorboard?" in first and "comet_ml is not installed" in second and loaded == "[]"


def test_every_extra_of_a_tracker_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a tracker of transformers and stands in pyproject.toml; one whose package is missing is told by it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*tracker_names.PACKAGES} == {*INTEGRATION_TO_CALLBACK}
    assert set(tracker_names.EXTRAS) == set(extras) & set(INTEGRATION_TO_CALLBACK)
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: ["tensorboard"])
    trackers.check(["tensorboard"])
    with pytest.raises(InputError, match=re.escape("pip install 'align-rlhf[wandb]', or leave wandb out.")):
        trackers.check(["wandb"])


def test_the_last_point_averages_a_whole_interval(pipeline: Pipeline) -> None:
    """Of 5 steps in lines of 3: the first step, 2 and 3, and then 3, 4 and 5, whose mean is the figure. The truth is a
    line per step."""
    each = {step: row["loss"] for step, row in rows(pipeline, train(pipeline, logging_steps=1)).items()}
    made = train(pipeline, logging_steps=3)
    expected = {1: each[1], 3: (each[2] + each[3]) / 2, 5: (each[3] + each[4] + each[5]) / 3}
    found = {step: row["loss"] for step, row in rows(pipeline, made).items()}
    assert found == pytest.approx(expected) and made.metrics["loss"] == found[5]
    assert found[5] != pytest.approx((each[4] + each[5]) / 2, rel=1e-4)  # negative control


def test_words_that_transformers_takes_for_no_tracker() -> None:
    """They are said to be that. Negative control: a misspelt tracker."""
    for word, said in (
        ("none", "leave it out"),
        ("all", "name the trackers"),
        ("tensorbord", "did you mean tensorboard"),
    ):
        with pytest.raises(InputError, match=said):
            tracker_names.check([word])
