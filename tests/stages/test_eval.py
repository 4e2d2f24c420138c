"""Looks at held-out records while a stage trains: what they measure, which weights they keep, when they end a run, and
that none of it depends on where the run was killed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from align import sft
from align.ground.errors import InputError
from align.guard import supervised
from align.guard.supervised import Guard
from align.report.training import read_curves, read_reinforced
from align.stage.ahead.dry_run import plan
from align.store import Artifact, Store
from tests.benchmarks import kills
from tests.conftest import ROOT, Pipeline, write_rows
from tests.stages.helpers import committed, forget, history, run, settings
from tests.stages.test_resume import die, interrupt
from tests.training.test_distributed import start, two_ranks

LONG: dict[str, Any] = {"max_steps": 8, "logging_steps": 3, "eval_steps": 1, "keep": "best", "patience": 2}
SERIES = [9.0, 5.0, 4.0, 2.0, 3.0, 2.5, 1.0, 1.0, 1.0]
"""Held-out losses after so many steps: with a patience of 2 the run ends after 5, and step 3 is the best."""


def measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out losses are those of `SERIES`, whatever the stage."""
    begin = Guard.begin

    def scripted(self: Guard, steps: int, per_epoch: int) -> None:
        begin(self, steps, per_epoch)
        measure = self.measure
        self.measure = lambda some: {**measure(some), "loss": SERIES[self.run.done]}

    monkeypatch.setattr(Guard, "begin", scripted)


def adapter(artifact: Artifact) -> list[str]:
    weights = ("adapter_model.safetensors", "model.safetensors", "head.safetensors")
    return [f["sha256"] for path, f in sorted(artifact.files.items()) if path.endswith(weights)]


def looks(artifact: Artifact, store: Store) -> dict[int, float]:
    """Held-out loss by step, from the curves."""
    return {int(r["step"]): r["eval/loss"] for r in history(artifact, store) if "eval/loss" in r}


# ---- what is measured ------------------------------------------------------------------------------------------------


ROWS = [{"prompt": f"What is {i} plus {i + 1}?", "completion": f"It is {2 * i + 1}, I think."} for i in range(12)]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # PEFT asks for it
def test_the_loss_is_transformers_own(tmp_path: Path) -> None:
    """Of the kept weights, loaded with PEFT, on the same rows: the mean over all tokens that the assistant says and its
    end. The kept step is the argmin of the curve."""
    base, store = str(ROOT / "data/tiny-base"), Store(tmp_path / "store")
    data, held = write_rows(tmp_path / "a.jsonl", ROWS[:8]), write_rows(tmp_path / "b.jsonl", ROWS[8:])
    made = sft.run(
        sft.Config(
            **{"base": base, "data": str(data), "eval_data": str(held), "precision": "fp32", "threads": 1},
            **{"max_steps": 6, "batch_size": 4, "learning_rate": 0.05, "eval_steps": 2, "keep": "best"},
            lr_scheduler="constant",
        ),
        store,
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    untrained = transformers_loss(bare, tokenizer, ROWS[8:])
    curve = looks(made, store)
    assert sorted(curve) == [0, 2, 4, 6] and curve[0] == pytest.approx(untrained, rel=1e-5)
    best = min((2, 4, 6), key=lambda step: curve[step])
    assert best < 6, "not the last one"
    found = {name: made.metrics[name] for name in ("best/step", "best/loss", "kept/step", "steps")}
    assert found == {"best/step": best, "best/loss": curve[best], "kept/step": best, "steps": 6}
    folder = store.folder(made)
    kept = PeftModel.from_pretrained(bare, str(folder / "adapters/0"))
    assert transformers_loss(kept, tokenizer, ROWS[8:]) == pytest.approx(curve[best], rel=1e-5)
    assert made.metrics["eval/loss"] == curve[best], "measured again on what is kept: the same number"
    assert len(set(curve.values())) == 4, "the control: other weights, another loss"


def transformers_loss(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    total, count = 0.0, 0
    for row in rows:
        asked = [{"role": "user", "content": row["prompt"]}]
        said = [*asked, {"role": "assistant", "content": row["completion"]}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = torch.tensor([tokenizer.apply_chat_template(said, return_dict=True)["input_ids"]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        tokens = ids.shape[1] - len(prompt)
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * tokens
        count += tokens
    return total / count


def test_looking_keeping_the_last_and_watching_change_no_weights(pipeline: Pipeline) -> None:
    """With dropout: looks and greedy answers draw no random number. The control: another seed, other weights."""
    common: dict[str, Any] = {"max_steps": 4, "adapter": {"rank": 4, "dropout": 0.3}, "name": "other"}
    plain = run(pipeline, "sft", **common)
    watched = run(pipeline, "sft", **common, eval_steps=1, patience=2, watch_prompts=2, watch_tokens=4)
    assert adapter(plain) == adapter(watched) != adapter(run(pipeline, "sft", **common, seed=9))
    rows = history(watched, pipeline.store)
    assert [r["step"] for r in rows] == [0, 1, 2, 3, 4] and "loss" not in rows[0]
    theirs = history(plain, pipeline.store)
    assert [{k: v for k, v in r.items() if not k.startswith("eval/")} for r in rows[1:]] == theirs
    assert "best/step" not in plain.metrics and watched.metrics["kept/step"] == watched.metrics["steps"] == 4
    assert not {"keep", "patience", "min_delta", "watch_tokens"} & plain.config.keys()
    answered = [json.loads(line) for line in pipeline.store.read(watched, "watched.jsonl").splitlines()]
    assert len(answered) == 2 and all([a["after"] for a in row["answers"]] == [0, 1, 2, 3, 4] for row in answered)
    questions = [json.loads(line)["prompt"] for line in (pipeline.recipe.parent / "sft.jsonl").read_text().splitlines()]
    assert {row["prompt"][0]["content"] for row in answered} <= set(questions)
    shown = read_reinforced(pipeline.store, watched)
    assert shown and [when for when, _ in shown.watched[0].answers] == ["at the start", "after step 2", "after step 4"]
    curves = read_curves(pipeline.store, watched)
    assert [step for step, _ in curves["eval/loss"]] == [0, 1, 2, 3, 4]


def test_texts_are_gone_on_with(pipeline: Pipeline) -> None:
    """Pretraining shows held-out perplexity, e to the loss, and how held-out documents would go on."""
    made = run(pipeline, "pretrain", max_steps=2, eval_epochs=0.1, watch_prompts=1, watch_tokens=4, name="other")
    rows = [r for r in history(made, pipeline.store) if "eval/loss" in r]
    assert all(r["eval/perplexity"] == pytest.approx(2.718281828459045 ** r["eval/loss"]) for r in rows) and rows
    (answered,) = (json.loads(line) for line in pipeline.store.read(made, "watched.jsonl").splitlines())
    texts = [json.loads(line)["text"] for line in (pipeline.recipe.parent / "texts.jsonl").read_text().splitlines()]
    assert any(text.startswith(answered["prompt"][0]["content"].strip()) for text in texts)


# ---- the end of a run, and what is kept ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage", ["sft", *(pytest.param(s, marks=pytest.mark.slow) for s in ("pretrain", "reward", "dpo"))]
)
def test_a_run_that_gets_worse_ends_and_goes_back(
    stage: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights are those of a run that ends at the best step (a constant rate, so that its steps are the same); a
    process that dies in the last step, or after it, goes on to the same digest."""
    measuring(monkeypatch)
    changes = {**LONG, "lr_scheduler": "constant", "name": "other"} | (
        {"centre_samples": 0} if stage == "reward" else {}
    )
    whole = run(pipeline, stage, **changes)
    found = {name: whole.metrics[name] for name in ("best/step", "best/loss", "kept/step", "steps")}
    assert found == {"best/step": 3, "best/loss": 2.0, "kept/step": 3, "steps": 5}
    assert "other: ended after 5 of 8 steps" in capsys.readouterr().err
    rows = history(whole, pipeline.store)
    assert [r["step"] for r in rows] == list(range(6)) and "loss" in rows[-1]
    changes["checkpoint_steps"] = 2
    for moment in (4, None) if stage == "sft" else (4,):
        forget(pipeline.store, whole)
        with monkeypatch.context() as patch:
            if moment is None:
                patch.setattr(Guard, "end", lambda self, folder: die())
            else:
                interrupt(patch, moment, die)
            with pytest.raises(OSError, match="pulled the plug"):
                run(pipeline, stage, **changes)
        assert run(pipeline, stage, **changes).digest == whole.digest, moment
    short = {k: v for k, v in changes.items() if k not in ("eval_steps", "keep", "patience")}
    assert adapter(run(pipeline, stage, **short | {"max_steps": 3})) == adapter(whole)
    if stage == "sft":  # negative control
        assert adapter(run(pipeline, stage, **short | {"max_steps": 4})) != adapter(whole)


@pytest.mark.slow
def test_killed_with_the_best_weights_on_the_disk(pipeline: Pipeline) -> None:
    """kill -9 in step 4, after a checkpoint that names a best step; with Ctrl-C's kin in `test_resume`."""
    changes = {**LONG, "learning_rate": 1.0, "lr_scheduler": "constant"}
    sets = [w for k, v in changes.items() for w in ("--set", f"stages.sft.{k}={v}")]
    before = committed(pipeline.store)
    kills.killed([*kills.command(pipeline.recipe, "sft", 8), *sets], pipeline.store.path, 4, 0.0)
    assert committed(pipeline.store) == before and kills.checkpoint_of(pipeline.store.path) == 3
    (folder,) = pipeline.store.path.glob("runs/*/checkpoints")
    kept = {path.name for path in folder.glob("best-*")}
    resumed = run(pipeline, "sft", **changes)
    step = resumed.metrics["kept/step"]
    forget(pipeline.store, resumed)
    assert kept and run(pipeline, "sft", **changes).digest == resumed.digest and step < resumed.metrics["steps"]


@pytest.mark.slow
def test_weights_that_a_checkpoint_names_stay(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A better step after the last checkpoint takes nothing from it: the run goes on from there, and is the same."""
    changes = {**LONG, "patience": None, "checkpoint_steps": 3, "learning_rate": 0.01, "name": "other"}
    with monkeypatch.context() as patch:
        interrupt(patch, 6, die)
        with pytest.raises(OSError, match="pulled the plug"):
            run(pipeline, "sft", **changes)
    (folder,) = pipeline.store.path.glob("runs/*/checkpoints")
    assert {path.name for path in folder.glob("best-*")} == {"best-3.safetensors", "best-5.safetensors"}
    resumed = run(pipeline, "sft", **changes)
    forget(pipeline.store, resumed)
    assert run(pipeline, "sft", **changes).digest == resumed.digest


def test_the_last_point_averages_a_whole_interval(pipeline: Pipeline) -> None:
    """Also of a run that ends early, and after lines that held-out figures have for themselves."""
    changes = {**LONG, "learning_rate": 1.0, "lr_scheduler": "constant", "name": "other"}
    each = {
        r["step"]: r["loss"]
        for r in history(run(pipeline, "sft", **changes | {"logging_steps": 1}), pipeline.store)
        if "loss" in r
    }
    made = run(pipeline, "sft", **changes)
    last = history(made, pipeline.store)[-1]
    newest = [each[step] for step in sorted(each)[-3:]]
    assert last["loss"] == pytest.approx(sum(newest) / 3) == made.metrics["loss"]
    assert last["loss"] != pytest.approx(newest[-1])  # negative control


def test_trackers_get_both_curves(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    made = run(pipeline, "sft", max_steps=4, eval_steps=2, report_to=["tensorboard"], name="other")
    (events,) = tmp_path.glob("other/*/events*")
    found = {e.step: e.value for e in EventAccumulator(str(events)).Reload().Scalars("eval/loss")}
    assert found == pytest.approx(looks(made, pipeline.store)) and sorted(found) == [0, 2, 4]


class Split(Guard):
    """A guard that on other ranks than the first measures what would never end a run."""

    def begin(self, steps: int, per_epoch: int) -> None:
        super().begin(steps, per_epoch)
        rank = int(os.environ.get("RANK", "0"))
        self.measure = lambda some: {"loss": SERIES[self.run.done] if rank == 0 else 9.0 - self.run.done}


def work(folder: Path) -> None:
    """SFT, looked at after every step; what this process sees of it."""
    supervised.Guard = Split  # type: ignore[misc]
    data = {"base": str(ROOT / "data/tiny-base"), "data": str(folder / "rows.jsonl"), "name": "x"}
    how = {"precision": "fp32", "threads": 1, "batch_size": 4, "lr_scheduler": "constant"}
    made = sft.run(sft.Config(**data, **how, **LONG), Store(folder / "store"))  # type: ignore[arg-type]
    seen = {"digest": made.digest, "kept": made.metrics["kept/step"], "steps": made.metrics["steps"]}
    (folder / os.environ["RANK"]).write_text(json.dumps(seen))


@pytest.mark.slow
def test_ranks_decide_the_same(tmp_path: Path) -> None:
    """What the first of two processes measures holds for both, though the other measures something else: alone it would
    go on, and they would wait for each other for ever."""
    write_rows(tmp_path / "rows.jsonl", ROWS)
    start("tests.stages.test_eval", tmp_path, *two_ranks())
    ours, theirs = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert ours == theirs and (ours["kept"], ours["steps"]) == (3, 5)


# ---- refused ---------------------------------------------------------------------------------------------------------


def test_nothing_to_look_at(tmp_path: Path) -> None:
    """One prompt, which trains; the dry run and the run say the same. The control: two of them."""

    def asked(rows: list[dict[str, Any]]) -> sft.Config:
        data = write_rows(tmp_path / "rows.jsonl", rows)
        return sft.Config(base=str(ROOT / "data/tiny-base"), data=str(data), max_steps=2, eval_steps=1, name="x")  # type: ignore[arg-type]

    store = Store(tmp_path / "store")
    for refuse in (lambda c: plan(sft.STAGE, c, store), lambda c: sft.run(c, store)):
        with pytest.raises(InputError, match="x: eval_steps is set, but no record is held out"):
            refuse(asked(ROWS[:1]))
    plan(sft.STAGE, asked(ROWS[:2]), store)


def test_both_kinds_of_interval(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="eval_steps and eval_epochs both say"):
        settings(pipeline, "sft", eval_steps=1, eval_epochs=0.5)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
