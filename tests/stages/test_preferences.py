"""DPO's kin as stages on the tiny world: they learn, go on after a stop as if there had been none, do not depend on how
steps are cut into micro-batches, and are planned for."""

from __future__ import annotations

import importlib
import json
import math
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align import kto, memory, orpo
from align.ground.errors import InputError, Stopped
from align.stage.ahead.dry_run import memory_plan, plan
from align.store import Artifact, Store
from tests.conftest import ROOT, Pipeline, write_rows
from tests.stages.helpers import committed, forget, history
from tests.stages.test_resume import interrupt

SETTINGS: dict[str, Any] = {
    "parent": "tiny/sft",
    "parent_adapter": "stack",
    "adapter": {"rank": 4, "alpha": 8.0},
    "seed": 3,
    "precision": "fp32",
    "threads": 1,
    "max_length": 96,
    "batch_size": 8,
    "max_steps": 3,
    "warmup_ratio": 0.0,
    "logging_steps": 1,
    "learning_rate": 0.01,
}
CASES: dict[str, Mapping[str, Any]] = {
    "simpo": {},
    "cpo": {},
    "orpo": {},
    "kto": {},
    "bco": {},
    "dpo": {"loss": {"aot_unpaired": 1.0, "sigmoid": 0.5}, "ld_alpha": 0.5},
}


def rows(pipeline: Pipeline, stage: str) -> Path:
    """Pairs, or, for KTO, both of their answers by turns."""
    pairs = pipeline.recipe.with_name("pairs.jsonl")
    if stage not in ("kto", "bco"):
        return pairs
    each = [json.loads(line) for line in pairs.read_text().splitlines()]
    good = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in each]
    bad = [{"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in each]
    return write_rows(
        pipeline.recipe.with_name("labelled.jsonl"), [row for both in zip(good, bad, strict=True) for row in both]
    )


def config(pipeline: Pipeline, stage: str, **changes: Any) -> Any:
    given = {"name": f"tiny/{stage}_", "data": rows(pipeline, stage), **SETTINGS, **CASES[stage], **changes}
    return importlib.import_module(f"align.{stage}").Config(**given)


def run(pipeline: Pipeline, stage: str, **changes: Any) -> Artifact:
    return importlib.import_module(f"align.{stage}").run(config(pipeline, stage, **changes), pipeline.store)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, marks=pytest.mark.slow if stage in ("dpo", "simpo", "cpo", "orpo") else ())
        for stage in CASES
    ],
)
def test_it_learns_and_goes_on(stage: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss falls in three steps. Stopped in step 2, the second run takes the other one and makes the same bytes;
    cut into other micro-batches it gives the same figures, also where the step is coupled."""
    before = committed(pipeline.store)
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Stopped, match="stopped at step 2 of 3"):
            run(pipeline, stage)
    assert committed(pipeline.store) == before
    resumed = run(pipeline, stage)
    curve = [row["loss"] for row in history(resumed, pipeline.store)]
    assert len(curve) == 3 and curve[-1] < curve[0]
    forget(pipeline.store, resumed)
    assert run(pipeline, stage).digest == resumed.digest
    if stage not in ("kto", "bco", "dpo"):
        return
    forget(pipeline.store, resumed)
    small = run(pipeline, stage, tokens_per_microbatch=96)
    assert small.config == resumed.config
    for row, other in zip(history(small, pipeline.store), history(resumed, pipeline.store), strict=True):
        assert {k: row[k] for k in FIGURES if k in row} == pytest.approx(
            {k: other[k] for k in FIGURES if k in row}, rel=2e-3, abs=2e-4
        )


FIGURES = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "kl", "shift")


@pytest.mark.parametrize("stage", ["simpo", "kto"])
def test_planned(stage: str, trained: Pipeline, tmp_path: Path) -> None:
    """A dry run shows rows and steps; without a reference there is none in the plan of memory."""
    recipe = tmp_path / "tiny.yaml"
    recipe.with_name("pairs.jsonl").write_text(trained.recipe.with_name("pairs.jsonl").read_text())
    here = Pipeline(recipe, Store(trained.store.path), trained.made)
    settings = config(here, stage)
    which = importlib.import_module(f"align.{stage}").STAGE
    planned = plan(which, settings, here.store)
    assert "run, nothing has its name yet" in str(planned) and "optimizer steps" in str(planned)
    inquiry = memory.Inquiry.asked(None, "cuda", True)
    (found,) = memory_plan(which, settings, here.store, inquiry, planned.looked).values()
    assert isinstance(found, memory.MemoryPlan)
    parts = {part.name for phase in found.phases for part in phase.parts}
    assert any("reference" in part for part in parts) == (stage == "kto")


def test_rows_of_kto_that_cannot_be(pipeline: Pipeline) -> None:
    """Each is told by its place."""
    bad = {
        'labelled.jsonl:1: "label" is missing': {"prompt": "Hi", "completion": "Ho"},
        'labelled.jsonl:1: "label" is the text "maybe"; expected true': {
            "prompt": "Hi",
            "completion": "Ho",
            "label": "maybe",
        },
        "a dialogue that ends with one": {"messages": [{"role": "user", "content": "Hi"}], "label": True},
        'labelled.jsonl:1: "completion" is': {"prompt": "Hi", "completion": "", "label": True},
    }
    for message, row in bad.items():
        data = write_rows(pipeline.recipe.with_name("labelled.jsonl"), [row])
        with pytest.raises(InputError, match=message.replace("(", r"\(")):
            kto.run(kto.Config(**{**SETTINGS, "data": data}), pipeline.store)
    with pytest.raises(ValueError, match="KL is estimated on answers to other prompts"):
        kto.Config(base="none", data="none", batch_size=1)


def test_held_out_pairs_of_orpo_are_measured_by_its_odds(pipeline: Pipeline, tmp_path: Path) -> None:
    """Against plain transformers, before the first step: -log sigmoid of the log odds ratio, which falls as the odds
    part of the loss does. Negative control: beta times the mean log-probs, which hardly leave ln 2."""
    pair = {"prompt": "Which colour is the ball?", "chosen": "It is red.", "rejected": "Who knows?"}
    base = ROOT / "data/tiny-base"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base, dtype="float32"), AutoTokenizer.from_pretrained(base)

    def mean_logprob(answer: str) -> float:
        said = [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": answer}]
        row = tokenizer.apply_chat_template(said, return_dict=True, return_assistant_tokens_mask=True)
        ids, counts = torch.tensor([row["input_ids"]]), torch.tensor(row["assistant_masks"][1:], dtype=torch.bool)
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return float(logprobs[counts].mean().detach())

    chosen, rejected = mean_logprob(pair["chosen"]), mean_logprob(pair["rejected"])
    odds = [p - math.log1p(-math.exp(p)) for p in (chosen, rejected)]
    data, held = rows(pipeline, "orpo"), write_rows(tmp_path / "held.jsonl", [pair])
    plain = {key: SETTINGS[key] for key in ("precision", "threads", "max_length", "batch_size")}
    made = orpo.run(
        orpo.Config(base=base, data=data, eval_data=held, eval_steps=1, max_steps=1, **plain), pipeline.store
    )
    first = next(row["eval/loss"] for row in history(made, pipeline.store) if "eval/loss" in row)
    assert first == pytest.approx(math.log1p(math.exp(odds[1] - odds[0])), rel=1e-4)
    assert first != pytest.approx(math.log1p(math.exp(0.1 * (rejected - chosen))), rel=0.02)


def test_held_out_pairs_of_ipo_are_measured_by_its_loss(pipeline: Pipeline) -> None:
    """Before the first step it is (1 / (2 beta))^2, by hand; with weights that many times. Negative control: of the
    pairs' order, as DPO's own loss is, it would be ln 2."""
    for loss, start in (({"ipo": 1.0}, 0.25), ({"ipo": 2.0, "sppo_hard": 1.0}, 1.0), ("sigmoid", math.log(2))):
        name = loss if isinstance(loss, str) else "-".join(loss)
        more: dict[str, Any] = {"loss": loss, "beta": 1.0, "ld_alpha": None, "eval_steps": 2, "name": f"tiny/{name}"}
        rows = history(run(pipeline, "dpo", **more), pipeline.store)
        looks = [row["eval/loss"] for row in rows if "eval/loss" in row]
        assert looks[0] == pytest.approx(start) and looks[-1] < looks[0]
