"""Where real runs start: the invariants of step 0, the pinned reference, what a stack leaves alone, and which records
are held out."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from align import sft
from align.data.formats import read_conversations, split_by_prompt
from align.ground.errors import AlignError, InputError
from align.models.roles import Roles
from align.stage import on_base, reading
from align.stage.question import prepare
from align.stage.workbench import Workbench
from tests.conftest import Pipeline
from tests.stages.helpers import GROUPS, committed, history, run, settings


def test_dpo_starts_at_ln_2_without_margins(trained: Pipeline) -> None:
    """On a stack too: policy and reference are the parent's adapters. After a step the margins have moved."""
    first, second = history(trained.made["dpo"], trained.store)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for name in ("rewards/margins", "rewards/chosen", "rewards/rejected"):
        assert first[name] == pytest.approx(0.0, abs=1e-5) and abs(second[name]) > 1e-2


def test_reward_starts_at_ln_2(trained: Pipeline) -> None:
    first, second = history(trained.made["reward"], trained.store)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7) and second["loss"] < first["loss"]


def test_ppo_starts_at_ratio_one_without_kl(trained: Pipeline) -> None:
    first, second = history(trained.made["ppo"], trained.store)
    assert first["ratio"] == pytest.approx(1.0, abs=1e-6) and first["clip_fraction"] == 0.0
    assert first["approx_kl"] == pytest.approx(0.0, abs=1e-7) and first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert second["approx_kl"] > 1e-6  # the same rollout after a step


@pytest.mark.parametrize("stage", sorted(GROUPS.keys() - {"online_dpo"}))  # which has no ratio
def test_groups_start_at_ratio_one_without_kl(stage: str, pipeline: Pipeline) -> None:
    """Policy and reference are the parent; a step later, on the same rollout, they are not."""
    first, second = history(run(pipeline, stage), pipeline.store)
    assert first["ratio"] == pytest.approx(1.0, abs=1e-6) and first["clip_fraction"] == 0.0
    assert first["approx_kl"] == pytest.approx(0.0, abs=1e-7) and first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert second["approx_kl"] > 1e-6
    if stage == "grpo":
        assert first["kl_k3"] == pytest.approx(0.0, abs=1e-7) and second["kl_k3"] > 1e-6


@pytest.mark.parametrize("stage", ["dpo", "ppo", *GROUPS])
def test_the_wrong_reference_is_refused(stage: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bare base after SFT, which is what "adapter disabled" shows: refused before the first step, nothing
    committed."""
    before = committed(pipeline.store)

    def bare_base(bench: Workbench, roles: Roles) -> None:
        roles.assign("reference", [])

    monkeypatch.setattr(on_base, "add_reference", bare_base)
    shutil.rmtree(pipeline.store.path / "cache/computed")  # the right reference's log-probs, from the run before
    with pytest.raises(AlignError, match="before the first step policy and reference differ in their adapters"):
        run(pipeline, stage, learning_rate=0.02)
    assert committed(pipeline.store) == before


def weights(pipeline: Pipeline, name: str) -> dict[str, str]:
    return {
        path: f["sha256"] for path, f in pipeline.made[name].files.items() if path.endswith("adapter_model.safetensors")
    }


def test_stack_leaves_the_parents_adapter(trained: Pipeline) -> None:
    """dpo stacks: the parent's bytes are its first adapter, a fresh one is its second. reward continues: one adapter,
    changed."""
    (parent,) = weights(trained, "sft").values()
    stacked = weights(trained, "dpo")
    assert list(stacked) == ["adapters/0/adapter_model.safetensors", "adapters/1/adapter_model.safetensors"]
    assert stacked["adapters/0/adapter_model.safetensors"] == parent != stacked["adapters/1/adapter_model.safetensors"]
    continued = weights(trained, "reward")
    assert list(continued) == ["adapters/0/adapter_model.safetensors"] and parent not in continued.values()


def test_what_is_recorded_of_an_adapter_is_what_it_is(trained: Pipeline, tmp_path: Path) -> None:
    """reward goes on from sft's adapter: its manifest says what PEFT reads from it, whatever `adapter` is beside it.
    dpo makes a fresh one."""
    made = trained.made["reward"]
    truth = LoraConfig.from_pretrained(str(trained.store.folder(made) / "adapters/0"))
    assert made.config["adapter"] == {
        "method": "lora",
        "rank": truth.r,
        "alpha": truth.lora_alpha,
        "targets": sorted(truth.target_modules),
        "layers": None,
        "experts": False,
    }
    assert truth.r == 4 and len(made.config["adapter"]["targets"]) == 7
    assert trained.made["dpo"].config["adapter"] == {
        "method": "lora",
        "rank": 4,
        "alpha": 8.0,
        "targets": "all-linear",
        "layers": None,
        "experts": False,
        "init_lora_weights": None,
        "dropout": 0.0,
    }
    for adapter in ({"rank": 64}, {"targets": ["q_proj"]}, {"rank": 4}):
        with pytest.raises(
            InputError,
            match=r"adapter\.(rank|targets) has no effect: the parent's adapter is trained on as it is\. Set "
            r"`parent_adapter: st",
        ):
            run(trained, "reward", adapter=adapter, name="other")


def test_a_stack_may_be_continued(pipeline: Pipeline) -> None:
    """Of a stack the last adapter is trained on; those under it stay. Its reference is the whole stack, or DPO would
    refuse to start."""
    made = run(pipeline, "dpo", parent="tiny/dpo", parent_adapter="continue", name="third")
    found = {path: f["sha256"] for path, f in made.files.items() if path.endswith("adapter_model.safetensors")}
    before = weights(pipeline, "dpo")
    assert found.keys() == before.keys()
    assert [found[path] == before[path] for path in sorted(before)] == [True, False]
    assert history(made, pipeline.store)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_the_prior_stages_held_out_prompts_stay_held_out(trained: Pipeline) -> None:
    """By hash of the prompt: in no stage's training set, and the same ones in every stage that has these prompts."""
    seen: dict[str, tuple[set[Any], set[Any]]] = {}
    for stage in ("sft", "reward", "dpo"):
        config = settings(trained, stage)
        job = prepare(sft.STAGE if stage == "sft" else _stage(stage), config, trained.store)
        seen[stage] = tuple({_opening(r) for r in part} for part in reading.split(Workbench(job)))  # type: ignore[arg-type, assignment]
    for train, held_out in seen.values():
        assert len(train) == 37 and len(held_out) == 3 and not train & held_out
    assert len({frozenset(held_out) for _, held_out in seen.values()}) == 1


def _stage(name: str) -> Any:
    import importlib

    return importlib.import_module(f"align.{name}").STAGE


def _opening(record: Any) -> str:
    return (record.messages if hasattr(record, "messages") else record.prompt)[0].content


def test_held_out_records_are_not_trained_on(pipeline: Pipeline, tmp_path: Path) -> None:
    """Other answers to held-out prompts change the eval loss and not one byte of the adapter."""
    data = tmp_path / "sft.jsonl"
    text = (pipeline.recipe.parent / "sft.jsonl").read_text()
    _, held_out = split_by_prompt(read_conversations(pipeline.recipe.parent / "sft.jsonl"), 0.1)
    lines = text.splitlines()
    for record in held_out:
        line = int(record.where.rsplit(":", 1)[1]) - 1
        lines[line] = lines[line].replace("It is", "It was")
    data.write_text("\n".join(lines) + "\n")
    assert data.read_text() != text
    made = run(pipeline, "sft", data=data, name="other")
    same = pipeline.made["sft"]
    assert {p: f for p, f in made.files.items()} == {p: f for p, f in same.files.items()}
    assert made.metrics["loss"] == same.metrics["loss"] and made.metrics["eval/loss"] != same.metrics["eval/loss"]
