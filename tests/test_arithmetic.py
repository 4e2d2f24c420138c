"""The benchmark of GRPO and RLOO on arithmetic: its splits hold, its judge is right, and it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from align import judges
from align.data.formats import read_prompts
from tests.benchmarks import arithmetic


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def asked_about(path: Path) -> set[tuple[int, ...]]:
    """The numbers that a file's prompts ask about, read with an expression of our own."""
    return {tuple(int(n) for n in re.findall(r"\d+", row["prompt"][-1]["content"])) for row in rows(path)}


def added(question: str) -> str:
    return str(sum(int(n) for n in re.findall(r"\d+", question)))


def test_splits(tmp_path: Path) -> None:
    """25 sums are 20 and 5; no held-out prompt is trained on; demonstrations are right half of the time."""
    arithmetic.write_sums(tmp_path, seed=0, demos=300, prompts=200, held_out=60)
    asked = {
        name: asked_about(tmp_path / f"{name}.jsonl")
        for name in ("demos", "prompts", "heldout-prompts", "heldout-sums")
    }
    assert len(asked["demos"]) == 20 and asked["demos"] == asked["prompts"] >= asked["heldout-prompts"]
    assert len(asked["heldout-sums"]) == 5 and not asked["heldout-sums"] & asked["demos"]
    text = {name: {json.dumps(row["prompt"]) for row in rows(tmp_path / f"{name}.jsonl")} for name in asked}
    assert len(text["demos"]) == 300 and not (text["heldout-prompts"] | text["heldout-sums"]) & (
        text["demos"] | text["prompts"]
    )
    assert not text["demos"] & text["prompts"]
    prompts = list(read_prompts(tmp_path / "prompts.jsonl"))
    assert all(p.columns["answer"] == added(p.messages[-1].content) for p in prompts)
    demos = [(added(row["prompt"][-1]["content"]), row["completion"]) for row in rows(tmp_path / "demos.jsonl")]
    assert 0.4 < sum(re.findall(r"\d+", said) == [total] for total, said in demos) / len(demos) < 0.6
    score = judges.load(arithmetic.GOLD)
    assert score(prompts[:1] * 2, [f"It is {prompts[0].columns['answer']}.", "It is 77."]) == [1.0, 0.0]
    arithmetic.write_sums(tmp_path, seed=1, demos=300, prompts=200, held_out=60)
    assert asked_about(tmp_path / "heldout-sums.jsonl") != asked["heldout-sums"]  # another seed holds out others


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    """Two steps a stage; too few to gain anything, enough to be measured."""
    few = {"max_steps": 2, "batch_size": 16}
    sft, shared = (
        {k: v for k, v in arithmetic.SFT.items() if k != "epochs"} | few,
        arithmetic.SHARED | few | {"rollout_size": 16},
    )
    found = arithmetic.run(tmp_path, 0, ["grpo", "rloo"], 1, answers=1, sft=sft, shared=shared)
    assert found.keys() == {"sft", "grpo", "rloo"}
    for row in found.values():
        for share, low, high in (row["prompts"], row["sums"]):
            assert 0 <= low <= share <= high <= 1
    assert all(
        abs(found[s]["gain"] - (found[s]["prompts"][0] - found["sft"]["prompts"][0])) < 1e-12 for s in ("grpo", "rloo")
    )
