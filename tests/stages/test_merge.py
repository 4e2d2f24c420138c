"""Merging: exported weights give the adapters' logits in plain transformers, and a difference is refused."""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import align
from align import measures, merge, models
from align.ground.errors import AlignError, InputError
from align.ground.progress import Task
from align.measures.logits import compare_logits
from tests.conftest import Pipeline
from tests.stages.helpers import committed, forget

IDS = torch.arange(5, 29)[None]


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits[0]


def test_the_export_is_the_policy(pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stack of two adapters, merged in fp32: plain transformers gives PEFT's logits; the base alone does not."""
    out = tmp_path / "exported"
    made = merge.run(merge.Config(parent="tiny/dpo", out=out, threads=1, name="mine/export"), pipeline.store)  # type: ignore[arg-type]
    said = capsys.readouterr().err  # each line says of which stage, as in a recipe others spoke before
    assert "\nmine/export: verdict: equal (KL " in said and "\nverdict: " not in said
    assert made.metrics["verdict"] == "equal" and made.metrics["greedy_agreement"] == 1.0
    adapters, tokenizer = align.load("tiny/dpo", pipeline.store)
    exported = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(exported), logits(adapters), atol=1e-5, rtol=0)
    base, _ = align.load("tiny/pretrain", pipeline.store)
    assert (logits(base) - logits(adapters)).abs().max() > 1e-2  # negative control
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    assert not [path for path in out.rglob("*") if "adapter" in path.name or "head" in path.name]


def test_what_takes_long_is_told_by_its_name(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a large base all of these take long, and a clock that ticks says at what. Negative control: an adapter's
    outputs are compared with no model written."""
    told: list[str] = []
    begin = Task.__enter__
    monkeypatch.setattr(Task, "__enter__", lambda self: (told.append(self.title), begin(self))[1])
    merge.run(merge.Config(parent="tiny/dpo", threads=1), pipeline.store)
    first, last = (place for place, what in enumerate(told) if what == "computing logits")
    between = ["merging adapters", "rounding weights", "writing the model", "hashing weights"]
    assert told[first + 1 : last] == [*between, "reading what was written", "hashing weights"]
    told.clear()
    generate = {"parent": "tiny/dpo", "data": pipeline.recipe.with_name("prompts.jsonl"), "max_new_tokens": 2}
    align.generate.run(align.generate.Config(**generate, threads=1), pipeline.store)  # type: ignore[arg-type]
    assert "merging adapters" in told and not {*between[1:]} & {*told}


def test_rounding_is_measured_and_refused_where_it_is_large(pipeline: Pipeline, tmp_path: Path) -> None:
    """bf16 rounds: its KL is larger than fp32's and told; a bound that it exceeds commits nothing and leaves no
    folder."""
    rounded = merge.run(merge.Config(parent="tiny/dpo", dtype="bf16", threads=1), pipeline.store)
    exact = merge.run(merge.Config(parent="tiny/dpo", threads=1), pipeline.store)
    assert (
        rounded.metrics["kl"] > 10 * exact.metrics["kl"]
        and rounded.metrics["logit_max_abs_diff"] > exact.metrics["logit_max_abs_diff"]
    )
    limit = rounded.metrics["kl"] / 2
    before = committed(pipeline.store)
    with pytest.raises(
        AlignError, match=r"the merged model differs from the adapters: KL .* above max_kl .* Nothing was committed"
    ) as e:
        merge.run(
            merge.Config(parent="tiny/dpo", dtype="bf16", max_kl=limit, out=tmp_path / "out", threads=1), pipeline.store
        )  # type: ignore[arg-type]
    assert e.value.exit_code == 1 and committed(pipeline.store) == before and not (tmp_path / "out").exists()


def test_no_two_models_are_held_while_one_is_loaded(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base and the merged copy are gone before what was stored is loaded again."""
    load_base, held = models.base.load_base, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        assert all(model() is None for model in held)
        held.append(weakref.ref(model := load_base(*args, **kwargs)))
        return model

    init = models.merged.MergedCopy.__init__

    def merged(self: Any, *args: Any) -> None:
        init(self, *args)
        held.append(weakref.ref(self.model))

    monkeypatch.setattr(models.base, "load_base", watched)
    monkeypatch.setattr(models.merged.MergedCopy, "__init__", merged)
    gc.disable()
    try:
        merge.run(merge.Config(parent="tiny/dpo", precision="fp32", threads=1), pipeline.store)
    finally:
        gc.enable()
    assert len(held) == 4  # the base, a copy to sample with, a copy to store, and what was stored


def test_half_of_what_is_compared_is_in_the_chat_template(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind what transformers' own `apply_chat_template` opens an answer with. Negative control: a template that
    refuses the question leaves text from BOS alone, and the verdict says so."""
    seen: list[Any] = []
    probe = measures.logits.probe_logits
    monkeypatch.setattr(measures.logits, "probe_logits", lambda *args: (seen.append(args[2]), probe(*args))[1])
    config = merge.Config(parent="tiny/sft", precision="fp32", threads=1)
    made = merge.run(config, pipeline.store)
    _, tokenizer = align.load("tiny/sft", pipeline.store)
    question = [{"role": "user", "content": merge.QUESTION}]
    opening = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    rows = [row.sequences[0] for row in seen[0]]
    assert [list(row[: len(opening)]) == opening for row in rows] == [False] * 8 + [True] * 8
    assert all(len(row) == 1 + 48 for row in rows[:8]) and all(len(row) == len(opening) + 48 for row in rows[8:])
    said = "on 16 texts of 48 tokens that the model wrote itself"
    assert f"{said}, 8 of them as answers in its chat template)" in capsys.readouterr().err
    assert made.metrics["chat_texts"] == 8
    forget(pipeline.store, made)
    monkeypatch.setattr(merge, "chat_opening", lambda *args: [])
    assert merge.run(config, pipeline.store).metrics["chat_texts"] == 0 and f"{said})" in capsys.readouterr().err


def test_verdicts() -> None:
    """Logits that overflowed give a KL that is no number, which is never equal."""
    found = [merge.verdict(kl, 0.01) for kl in (0.0, 1e-8, 1e-3, 0.01, 0.02, math.nan, math.inf)]
    assert found == ["equal", "equal", "close", "close", "different", "different", "different"]
    assert merge.verdict(1e-8, 1e-9) == "different"
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert compare_logits(logits, logits)["kl"] == 0.0
    assert math.isnan(compare_logits(logits, torch.full_like(logits, torch.inf))["kl"])
    moved = logits + torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
    by_hand = (
        (torch.softmax(logits, -1) * (torch.log_softmax(logits, -1) - torch.log_softmax(moved, -1)))
        .sum(-1)
        .mean()
        .item()
    )
    assert compare_logits(logits, moved)["kl"] == pytest.approx(by_hand, rel=1e-4) and by_hand > 0.01


def test_a_folder_that_holds_something_is_refused_before_merging(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.models.base.load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    (tmp_path / "mine.txt").write_text("precious")
    before = committed(pipeline.store)
    with pytest.raises(InputError, match=f"out: {tmp_path} is not empty"):
        merge.run(merge.Config(parent="tiny/dpo", out=tmp_path), pipeline.store)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"parent: tiny/pretrain is a model artifact .*, but merge needs adapter or reward there"
    ):
        merge.run(merge.Config(parent="tiny/pretrain"), pipeline.store)
    assert committed(pipeline.store) == before and [p.name for p in tmp_path.iterdir() if p.name != "pipeline"] == [
        "mine.txt"
    ]


def test_of_several_processes_one_exports(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second writes nothing, where it met a folder that was not empty; the control is the first."""
    made = merge.run(merge.Config(parent="tiny/dpo", max_kl=10.0), pipeline.store)
    monkeypatch.setattr(merge, "execute", lambda *_: made)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        merge.run(merge.Config(parent="tiny/dpo", max_kl=10.0, out=tmp_path / "out"), pipeline.store)  # type: ignore[arg-type]
        assert (tmp_path / "out").exists() is (rank == "0")


def test_a_precision_that_changes_nothing_is_told(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Negative control: one that is what happens."""
    for precision, told in (("bf16", True), ("fp32", False)):
        merge.run(merge.Config(parent="tiny/sft", precision=precision, threads=1, name=precision), pipeline.store)
        assert ("merged and compared in fp32, whatever precision says" in capsys.readouterr().err) is told
