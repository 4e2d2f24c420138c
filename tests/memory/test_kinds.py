"""Phases of every kind of stage, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from align import evaluate, memory
from align.inputs import narrow
from align.memory import sizes
from align.stage import catalogue
from tests.memory.workloads import TINY, footprint, parts_of, setup


def test_adapters_by_hand():
    """Rank 4 on all linears: 4 * (16 + 12 + 12 + 16 + 24 + 24 + 24) weights a layer; AdamW: weight, gradient, two
    moments."""
    planned = memory.plan(setup(adapter={"rank": 4}))
    assert {part.name: part.bytes for part in planned.peak.parts}[
        "adapter of policy, gradients, optimizer"
    ] == 2 * 4 * 128 * 16
    only = memory.plan(setup(adapter={"rank": 4, "targets": ["q_proj"]}, optimizer="adamw_8bit"))
    assert {part.name: part.bytes for part in only.peak.parts}[
        "adapter of policy, gradients, optimizer"
    ] == 2 * 4 * 16 * 10


def test_the_top_layers_alone():
    """Of two layers the upper one: half the adapter, activations and merged copy; what enters it is kept of 2 x 8
    samples of 100 tokens."""
    c = {"max_length": 100, "max_new_tokens": 20, "batch_size": 8, "rollout_size": 16}
    plans = [memory.plan(setup("grpo", group_size=2, adapter={"rank": 4, **more}, **c)) for more in ({}, {"layers": 1})]
    every, top = (parts_of(plan, "forward") for plan in plans)
    assert top["adapter of policy, gradients, optimizer"] * 2 == every["adapter of policy, gradients, optimizer"]
    sampled = [parts_of(plan, "sampling")["merged copy for sampling"] for plan in plans]
    assert sampled[1] * 2 == sampled[0] and "merged copy for sampling" not in every
    kept = sizes.kept_per_token(TINY, 4, size=2, fused=True, by_matmul=False)
    assert every["activations"] - top["activations"] == 4 * (80 + 2 * 20) * kept
    assert (
        top["rows from the frozen layers"] == 8 * (80 + 2 * 20) * 8 * 2 and "rows from the frozen layers" not in every
    )
    off = parts_of(
        memory.plan(setup("grpo", group_size=2, adapter={"rank": 4, "layers": 1}, trunk_cache="off", **c)), "forward"
    )
    assert "rows from the frozen layers" not in off


def test_a_value_head_on_the_trunk_has_no_activations():
    own, trunk = (memory.plan(setup("ppo", value=value)) for value in ("adapter", "trunk"))
    assert parts_of(trunk, "forward")["activations"] == parts_of(own, "forward of policy")["activations"]
    assert parts_of(own, "forward of value")["activations"] > 0 and not [p for p in trunk.phases if "value" in p.name]
    own, trunk = parts_of(own, "forward of policy"), parts_of(trunk, "forward")
    assert "adapter of value, gradients, optimizer" in own and "adapter of value, gradients, optimizer" not in trunk


def test_peak_is_the_largest_phase():
    planned = memory.plan(setup("ppo"))
    assert {phase.name for phase in planned.phases} == {"load", "prompts", "sampling", "measuring"} | {
        f"{way} of {role}" for way in ("forward", "backward") for role in ("policy", "value")
    }
    assert (
        planned.peak.bytes
        == max(phase.bytes for phase in planned.phases)
        < sum(phase.bytes for phase in planned.phases)
    )
    assert [part.bytes for part in planned.largest()] == sorted(
        (part.bytes for part in planned.peak.parts), reverse=True
    )[:3]


def test_every_kind_of_stage_has_a_plan():
    assert all(catalogue.stage_of(kind).footprint for kind in catalogue.KINDS)


def test_full_training_by_hand():
    """1,704 weights, each with gradient and two moments in fp32; in bf16 matrices and head once more in 2 bytes. An
    adapter: as SFT."""
    found = parts_of(memory.plan(setup("pretrain")), "forward")
    assert found["model in fp32"] == 4 * 1704 and found["gradients, optimizer"] == 12 * 1704
    assert found["weights in bf16"] == 2 * (1152 + 32 * 8) and found["gradient of the head"] == 4 * 32 * 8
    adapter, wanted = (
        memory.plan(setup(kind, **extra)).peak.bytes for kind, extra in (("pretrain", {"method": "lora"}), ("sft", {}))
    )
    assert adapter > wanted  # of a conversation half counts, of a text all
    whole, half = (
        parts_of(memory.plan(setup(kind, **extra)), "forward")
        for kind, extra in (("pretrain", {"method": "lora"}), ("sft", {}))
    )
    assert {k: v for k, v in whole.items() if k != "activations"} == {
        k: v for k, v in half.items() if k != "activations"
    }


def test_a_cpu_reads_weights_of_another_precision_and_the_tokenizer_twice():
    """A vocabulary of 32 by 8 numbers of 4 bytes, the largest matrix, which is read before it is rounded; the tokenizer
    is read again beside the live one. Weights in the precision of their file are mapped, and a GPU counts neither."""
    work = replace(setup("sft"), device="cpu")
    planned = memory.plan(work)
    assert parts_of(planned, "load")["one matrix as it is stored"] == 4 * 32 * 8
    assert parts_of(planned, "check")["tokenizer, loaded again"] == 14.5 * 100 * 32
    read = memory.plan(replace(work, tokenizer_bytes=1000))
    assert parts_of(read, "check")["tokenizer, loaded again"] == 14_500 and parts_of(read, "load")["tokenizer"] == 8300
    same = memory.plan(replace(work, shape=replace(TINY, stored_bytes=2)))
    assert "one matrix as it is stored" not in parts_of(same, "load")
    assert not {"check"} & {phase.name for phase in memory.plan(setup("sft")).phases}


def test_a_base_that_stays_in_16_bits(monkeypatch: pytest.MonkeyPatch):
    """On a CPU in fp32: 2 bytes a weight, the largest matrix (8 x 16) in fp32, mapped; of the head all 32 rows of 8,
    as few rows of logits fill no block. The controls: a GPU, bf16, files in fp32 or of several types, weights that all
    train, what is not proven, and a base that is too small."""
    monkeypatch.setattr(narrow, "WORTH", 2 * TINY.weights)
    half = replace(TINY, stored_bytes=2)
    work = replace(setup("sft", adapter={"rank": 4}), device="cpu", bf16=False, shape=half)
    found = parts_of(memory.plan(work), "forward")
    assert found["base in 16 bits"] == 2 * half.weights and found["one matrix, widened"] == 4 * 8 * 16
    assert found["rows of the head, widened"] == 4 * 32 * 8
    assert sizes.rows_widened(replace(half, vocabulary=1 << 20), 1 << 10) == 4 * 8 * (8 << 10)
    assert sizes.rows_widened(replace(half, vocabulary=1 << 20, hidden=1 << 10), 1) == 32 << 20
    loading = parts_of(memory.plan(work), "load")
    assert loading["head, widened"] == 4 * 32 * 8 and "one matrix as it is stored" not in loading
    adapters: list[dict[str, Any]] = [{"method": "dora"}, {"init_lora_weights": "pissa"}]
    wide = [replace(work, **change) for change in ({"device": "cuda"}, {"bf16": True}, {"whole": True})]
    wide += [replace(work, shape=replace(half, **change)) for change in ({"stored_bytes": 4}, {"may_stay": False})]
    wide += [replace(work, config=setup("sft", adapter=adapter).config) for adapter in adapters]
    assert not any(other.narrow for other in wide) and work.narrow
    assert parts_of(memory.plan(wide[3]), "forward")["base in fp32"] == 4 * half.weights
    monkeypatch.setattr(narrow, "WORTH", 2 * TINY.weights + 1)
    assert not work.narrow


def test_groups_share_their_prompt():
    """Two groups of 80 tokens and 4 x 20 of answers make a row of 320, half of which the head takes; each answer alone
    would make 800."""
    c = {"max_length": 100, "max_new_tokens": 20, "batch_size": 8, "rollout_size": 8}
    found = parts_of(memory.plan(setup("grpo", group_size=4, **c)), "forward")
    kept = sizes.kept_per_token(TINY, 16, size=2, fused=True, by_matmul=False)
    spared = lambda tokens, read: sizes.spared_by_last_layer(TINY, 16, tokens, read, size=2, fused=True)  # noqa: E731
    assert found["activations"] == 2 * 320 * kept - spared(320, 160)
    # logits in fp32, and in bf16 before and after; of each row hidden states and their gradient in bf16, and two sums
    # in fp32
    assert found["logits"] == 2 * 4 * 160 * 32 + 160 * 8 * (2 * 2 + 2 * 4)
    alone = parts_of(memory.plan(setup("ppo", **c)), "forward of policy")
    assert alone["activations"] == 2 * 800 * kept - spared(800, 160)
    assert "adapter of value, gradients, optimizer" not in found and "adapter of value, gradients, optimizer" in alone


def test_rewards_and_the_value_role():
    """Each reward model lies there; the value role copies the first of them, else the parent, else it is fresh."""
    two = parts_of(memory.plan(setup("ppo", reward=["a", "b"], rewards=((1000,), (500, 10)))), "forward of value")
    assert (two["adapter of reward"], two["adapter of reward 2"]) == (4000, 2040)
    assert two["adapter of value, gradients, optimizer"] == 16 * 1000
    judged = {"reward": None, "judges": {"right": "judge.py:score"}, "rewards": ()}
    after = parts_of(memory.plan(setup("ppo", **judged, parent=(700,))), "forward of value")
    assert after["adapter of value, gradients, optimizer"] == 16 * 700 and not any("reward" in name for name in after)
    at_start = parts_of(memory.plan(setup("ppo", **judged, adapter={"rank": 4})), "forward of value")
    assert at_start["adapter of value, gradients, optimizer"] == 16 * 4 * 128 * 2


def test_sampling_by_hand():
    """Prompts of 1,000 tokens and 4 answers of 24: 59 prompts at a time fill 65,536 tokens, each with keys and values
    of 4 numbers in 2 bytes and 2 layers. A limit of 10 prompts holds 10, and no copy is merged where there is no
    adapter."""
    found = parts_of(memory.plan(setup("pairs", max_new_tokens=24)), "sampling")
    assert found["keys and values"] == 59 * 1096 * 2 * 2 * 4 * 2 and "merged copy for sampling" not in found
    assert parts_of(memory.plan(setup("pairs", max_new_tokens=24)), "prompts")["keys and values"] == 59 * 1000 * 32
    limited = parts_of(memory.plan(setup("pairs", max_new_tokens=24, limit=10, parent=(500,))), "sampling")
    assert limited["keys and values"] == 10 * 1096 * 32 and limited["merged copy for sampling"] == 2 * 1152


def test_watched_prompts_are_sampled_between_steps():
    """4 prompts and 24 tokens of an answer each within 1,024, beside the optimizer's state and a merged copy; full
    training merges none, and a reward model or a stage that watches none answers nothing."""
    watched = {"watch_prompts": 4, "watch_tokens": 24}
    found = parts_of(memory.plan(setup("sft", **watched)), "sampling")
    assert found["keys and values"] == 4 * 1024 * 32 and found["merged copy for sampling"] == 2 * 1152
    assert "adapter of policy, gradients, optimizer" in found
    full = parts_of(memory.plan(setup("pretrain", **watched)), "sampling")
    assert "merged copy for sampling" not in full and "gradients, optimizer" in full
    for kind, settings in (("sft", {}), ("reward", {**watched, "centre_samples": 0})):
        assert "sampling" not in [p.name for p in memory.plan(setup(kind, **settings)).phases]


def test_who_is_asked_lies_on_the_base():
    """The adapter of `judge_model` beside the others, in a phase of its own where no policy trains; 50 weights are 200
    bytes."""
    asked: Any = {"judge_prompt": "{prompt}{answer}", "judge_model": "j", "data": "none"}
    config = evaluate.Config(compare=["a"], max_new_tokens=24, limit=10, **asked)
    work = memory.Workload(footprint("evaluate"), config, TINY, None, "cuda", True, (7,), (), ((7,),), judge=(50,))
    planned = memory.plan(work)
    assert planned.phases[-1].name == "asking" and parts_of(planned, "asking")["adapter of judge"] == 200
    trained = memory.plan(replace(setup("grpo", **asked), judge=(50,)))
    assert all("adapter of judge" in {part.name for part in phase.parts} for phase in trained.phases[1:-1])
    assert "adapter of judge" not in parts_of(memory.plan(setup("grpo")), "sampling")  # negative control


def test_evaluation_holds_two_of_those_it_compares():
    config = evaluate.Config(compare=["a", "b", "c"], reward="r", data="none", max_new_tokens=24, limit=10)
    planned = memory.plan(
        memory.Workload(
            footprint("evaluate"), config, TINY, None, "cuda", True, (7,), ((50,),), ((7,), (100, 20), (9,))
        )
    )
    assert [phase.name for phase in planned.phases] == ["load", "prompts", "sampling", "measuring", "scoring"]
    assert (
        parts_of(planned, "sampling")["adapter of model"] == parts_of(planned, "scoring")["adapter of against"] == 480
    )
    assert parts_of(planned, "scoring")["adapter of reward"] == 200 and "adapter of reward" not in parts_of(
        planned, "sampling"
    )
