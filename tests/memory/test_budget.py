"""Budgets: recipes that fit and do not, and proposals that hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from align import memory, merge
from align.ground.errors import InputError
from align.memory import budget, known
from align.memory.text import in_few
from tests.memory.workloads import GIB, llama_8b, on_gpu, setup


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 << 30), ("24GB", 24 * 10**9), ("800 MiB", 800 << 20), ("1.5gib", 3 << 29)]
)
def test_sizes(text: str, size: int):
    assert memory.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "24", "lots", "24 apples", "0GiB", "-1GiB", "GiB"])
def test_sizes_that_are_none(text: str):
    with pytest.raises(InputError, match="--memory takes a size such as 24GiB"):
        memory.parse_size(text)


@pytest.mark.parametrize("kind", ["sft", "dpo", "ppo"])
@pytest.mark.parametrize("budget", [16, 20, 24, 40])
def test_proposals_fit(kind: str, budget: int):
    """Every proposal, put into the settings, fits by the same plan; where there is none, not even the floor fits."""
    asked = setup(kind, llama_8b())
    found = memory.proposals(asked, budget * GIB)
    for choice in found:
        config = asked.config.model_copy(update={k: v for k, v in choice.settings.items() if k != "base.quantize"})
        again = memory.plan(
            on_gpu(kind, config, asked.shape, quantize=choice.settings.get("base.quantize"), rewards=asked.rewards)
        )
        assert again.peak.bytes == choice.plan.peak.bytes and memory.fits(again, budget * GIB)
    if not found:
        assert memory.fits(memory.plan(asked), budget * GIB) or not memory.fits(memory.floor(asked).plan, budget * GIB)


def test_proposals_are_the_smallest_change():
    """Rows are cut in half as often as needed, and once less does not fit."""
    asked = setup(shape=llama_8b(), tokens_per_microbatch=16384, batch_size=64, max_length=512)
    budget = 40 * GIB
    settings = memory.proposals(asked, budget)[0].settings
    assert list(settings) == ["tokens_per_microbatch"]
    twice = asked.config.model_copy(update={"tokens_per_microbatch": settings["tokens_per_microbatch"] * 2})
    assert not memory.fits(memory.plan(on_gpu("sft", twice, asked.shape)), budget)


def test_smaller_rollouts_are_whole_groups_and_steps():
    """Each of them is a setting that the stage accepts; 96 in steps of 32 has no half that is."""
    for group, rollout, batch in ((8, 128, 32), (16, 128, 32), (16, 96, 32), (3, 96, 48)):
        asked = setup("grpo", group_size=group, rollout_size=rollout, batch_size=batch)
        found = budget._rollouts(asked)
        for n in found:
            setup("grpo", group_size=group, rollout_size=n, batch_size=min(n, batch))
        assert (
            found == {8: [64, 32, 16, 8], 16: [64, 32, 16], 3: [48, 24, 12]}[group]
            if rollout == 128 or group == 3
            else not found
        )


def test_a_budget_that_is_too_small_is_explained():
    asked = memory.Inquiry("cuda", 2 * GIB)
    text = memory.report({"big/sft": memory.plan(setup(shape=llama_8b()))}, asked)
    assert (
        "too large  for 2.0 GiB" in text
        and "the least with" in text
        and "base_offload=true" in text
        and "layers gathered" in text
    )
    assert max(map(len, text.splitlines())) <= 100


def test_a_plan_fits_80_columns():
    """Also of names that leave little room, which then stand above; nothing of it is cut. Negative control: on one line
    it would not."""
    name, asked = "recipe/dpo.learning_rate-0.0001.beta-0.1", memory.Inquiry("cuda", 2 * GIB)
    planned = memory.plan(setup(shape=llama_8b()))
    for called in ("big/sft", name):
        lines = memory.report({called: planned, "b": "not planned"}, asked).splitlines()
        assert max(map(len, lines)) < 80 and any(line.startswith(called) for line in lines)
        assert planned.peak.name in " ".join(" ".join(lines).split())
    parts = " · ".join(part.name for part in planned.largest())
    assert len(f"{name}  {planned.peak.name}: {parts}") > 80


def test_runs_of_which_the_same_is_told_are_one_line():
    """By the pattern that stands for them alone. Negative controls: one of other figures, and runs whose pattern would
    stand for that one, too."""
    asked, planned = memory.Inquiry("cuda", 200 * GIB), memory.plan(setup(shape=llama_8b()))
    other = memory.plan(setup(shape=llama_8b(), batch_size=64, tokens_per_microbatch=16384))
    swept = {f"big/dpo.beta-{beta}": planned for beta in (0.1, 0.5, 1)}
    lines = memory.report({"big/sft": other, **swept}, asked).splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("big/")] == ["big/sft", "big/dpo.beta-* (3 runs)"]
    assert sum(" fits " in line for line in lines) == 2
    seeds = {f"big/seed-{seed}/dpo": planned for seed in (0, 1)}
    assert "big/seed-*/dpo (2 runs)" in memory.report(seeds, asked)
    between = {**swept, "big/dpo.beta-0.5": other}
    told = [line.split("  ")[0] for line in memory.report(between, asked).splitlines() if line.startswith("big/")]
    assert told == [*swept]


def test_runs_of_a_stage_are_one_line_where_another_stage_takes_as_much():
    """Each stage's own, over several sweeps; what differs by one of them is told for each of its values. Negative
    control: names that differ in more than values of sweeps."""
    runs = [f"study/seed-{s}/dpo.beta-{b}.loss-{loss}" for s in (0, 1) for b in (0.1, 1) for loss in ("ipo", "hinge")]
    others = [f"study/seed-{seed}/report" for seed in (0, 1)]
    asked, planned = memory.Inquiry("cuda", 200 * GIB), memory.plan(setup(shape=llama_8b()))
    stages = dict.fromkeys(runs, "dpo") | dict.fromkeys(others, "report")
    lines = memory.report(dict.fromkeys([*runs, *others], planned), asked, stages).splitlines()
    told = [line.split("  ")[0] for line in lines if line.startswith("study/")]
    assert told == ["study/seed-*/dpo.beta-* (8 runs)", "study/seed-*/report (2 runs)"]
    apart = [name for name in runs if name.endswith("ipo")] + runs[1:2]
    assert list(in_few(apart, runs)) == ["study/seed-*/dpo.beta-*.loss-ipo (4 runs)", runs[1]]
    assert list(in_few(["study/sft", "study/dpo"], runs)) == ["study/sft", "study/dpo"]


def test_what_looks_at_a_model_of_fp32_is_planned_in_it():
    """Negative controls: one of bf16, and a precision that is set."""
    of_fp32 = memory.Known(llama_8b(), None, in_fp32=True)
    assert not known.computes_bf16("auto", "cuda", [of_fp32])
    assert known.computes_bf16("auto", "cuda", [replace(of_fp32, in_fp32=False)])
    assert known.computes_bf16("bf16", "cuda", [of_fp32])


def test_without_a_plan_nothing_is_said_of_rows():
    asked = memory.Inquiry("cpu")
    assert memory.report({"ab": "not planned"}, asked) == f"memory\n\nab  {'?':>9}  not planned"
    both = memory.report({"ab": "not planned", "big/sft": memory.plan(setup(shape=llama_8b()))}, asked)
    assert "packed rows full" in both and f"{'ab':<7}  {'?':>9}  not planned" in both


def test_merging_needs_the_whole_model_in_fp32():
    """8.03e9 weights in fp32, and while the probe's text is sampled the layers' matrices, 6.98e9, once more."""
    config = merge.Config(parent="none")
    peak = memory.plan(on_gpu("merge", config, llama_8b(), parent=(1,))).peak.bytes
    assert 55 * GIB < peak < 57 * GIB
