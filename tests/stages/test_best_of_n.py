"""The best of n: what `generate` draws by the same seed, chosen by a judge's or a reward model's scores, and two rounds
of expert iteration in a recipe."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import align
from align import best_of_n, generate, pairs
from align.ground.errors import InputError
from align.store import Artifact
from tests.conftest import Pipeline, set_in_recipe

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

JUDGE = """
def score(prompts, completions, **columns):
    return [None if "q" in c else float(len(set(c))) for c in completions]
"""
COMMON: dict[str, Any] = {
    "parent": "tiny/sft",
    "n": 6,
    "max_new_tokens": 8,
    "stop": ["e", "a"],
    "seed": 5,
    "precision": "fp32",
    "threads": 1,
}


def make(pipeline: Pipeline, **changes: Any) -> list[dict[str, Any]]:
    made = run(pipeline, **changes)
    rows = [json.loads(line) for line in pipeline.store.read(made, "data.jsonl").splitlines()]
    assert made.kind == "data" and made.metrics["rows"] == len(rows)
    return rows


def run(pipeline: Pipeline, **changes: Any) -> Artifact:
    judge = pipeline.recipe.with_name("judge.py")
    judge.write_text(JUDGE)
    given = {"judge": f"{judge}:score", "data": pipeline.recipe.with_name("prompts.jsonl"), **COMMON, **changes}
    return best_of_n.run(best_of_n.Config(**given), pipeline.store)


def drawn(pipeline: Pipeline) -> list[list[dict[str, Any]]]:
    """What the policy answers, by `generate`."""
    config = generate.Config(**COMMON, data=pipeline.recipe.with_name("prompts.jsonl"))
    answers = generate.run(config, pipeline.store)
    return [answers[i : i + COMMON["n"]] for i in range(0, len(answers), COMMON["n"])]


def by_hand(groups: list[list[dict[str, Any]]], keep: int, least: float, scores: list[list[float]]) -> list[Any]:
    """(prompt, completion, score) of the best that ended and say something."""
    out = []
    for group, its in zip(groups, scores, strict=True):
        able = {}
        for answer, score in zip(group, its, strict=True):
            if answer["ended"] and answer["completion"].strip() and score >= least:
                able.setdefault(answer["completion"], (answer["prompt"], answer["completion"], score))
        out += sorted(able.values(), key=lambda row: -row[2])[:keep]
    return out


def test_the_best_by_a_judge(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """One, three, and all above a threshold; None is never kept, answers that were cut are not, prompts without are
    counted."""
    groups = drawn(pipeline)
    nothing = -float("inf")
    scores = [[nothing if "q" in a["completion"] else len(set(a["completion"])) for a in group] for group in groups]
    for keep, least in ((1, None), (3, None), (6, 5.0)):
        rows = make(pipeline, keep=keep, min_score=least)
        found = [(row["prompt"], row["completion"], row["score"]) for row in rows]
        assert found == by_hand(groups, keep, -1.0 if least is None else least, scores)
    assert not all(a["ended"] for group in groups for a in group)  # so that it is seen that those are left out
    assert found != by_hand(groups, 6, -1.0, scores)
    assert "prompts have none that ended and scored enough" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"no answer of 48 can be kept: .* ended by themselves"):
        run(pipeline, min_score=100.0)


def test_the_best_by_a_reward_model(pipeline: Pipeline) -> None:
    """Scores are those of PEFT's model and the head's product at each answer's last token, as drawn; `pairs` takes a
    reward artifact as well."""
    groups, reward = drawn(pipeline), pipeline.store.folder(pipeline.made["reward"])
    rows = make(pipeline, judge=None, reward="tiny/reward", trust_reward=True)
    base = pipeline.store.folder(pipeline.made["pretrain"]) / "model"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), reward / "adapters/0").eval()
    tokenizer = AutoTokenizer.from_pretrained(reward / "tokenizer")
    head = load_file(reward / "head.safetensors")

    @torch.no_grad()
    def score(answer: dict[str, Any]) -> float:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": answer["prompt"]}], add_generation_prompt=True
        )
        ids = [*asked["input_ids"], *answer["ids"]]
        hidden = model.get_base_model().model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        return float(hidden @ head["weight"].reshape(-1) + head.get("bias", torch.zeros(1)))

    ids = drawn_ids(pipeline)
    for group, its in zip(groups, ids, strict=True):
        for answer, of in zip(group, its, strict=True):
            answer["ids"] = of
    expected = by_hand(groups, 1, -float("inf"), [[score(a) for a in group] for group in groups])
    assert [(r["prompt"], r["completion"]) for r in rows] == [row[:2] for row in expected]
    np.testing.assert_allclose([r["score"] for r in rows], [row[2] for row in expected], atol=1e-5)
    config = pairs.Config(
        **COMMON, reward="tiny/reward", trust_reward=True, data=pipeline.recipe.with_name("prompts.jsonl")
    )
    made = pairs.run(config, pipeline.store)
    best = {row["prompt"]: row["completion"] for row in rows}
    for line in pipeline.store.read(made, "data.jsonl").splitlines():
        row = json.loads(line)
        assert row["rejected"] != best.get(row["prompt"])
    assert made.parents["reward"] == pipeline.made["reward"].digest


def drawn_ids(pipeline: Pipeline) -> list[list[list[int]]]:
    """Token ids of what the policy answers, as a judge is told them."""
    file = pipeline.recipe.with_name("ids.jsonl")
    judge = pipeline.recipe.with_name("tells.py")
    judge.write_text(
        "import json\nfrom pathlib import Path\n"
        "def score(prompts, completions, completion_ids, **columns):\n"
        f"    Path({str(file)!r}).write_text(json.dumps([list(map(int, ids)) for ids in completion_ids]))\n"
        "    return [1.0] * len(completions)\n"
    )
    run(pipeline, judge=f"{judge}:score")
    ids = json.loads(file.read_text())
    return [ids[i : i + COMMON["n"]] for i in range(0, len(ids), COMMON["n"])]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"judge": None}, "none of judge, reward and judge_prompt is set"),
        ({"reward": "tiny/reward"}, "both judge and reward are set"),
        ({"keep": 7}, r"keep \(7\) is more than the n \(6\) answers"),
        ({"keep": 6}, r"keep is n \(6\), so nothing is chosen. Lower keep"),
        ({"n": 1}, r"keep is n \(1\), so nothing is chosen. Raise n"),
        ({"trust_reward": True}, "trust_reward has no effect: no reward artifact scores here"),
        ({"judge": None, "reward": "tiny/sft"}, "reward"),
    ],
)
def test_what_cannot_be(given: dict[str, Any], message: str, pipeline: Pipeline) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        run(pipeline, **given)


BEST: dict[str, Any] = {
    "kind": "best_of_n",
    "reward": "reward",
    "data": "prompts.jsonl",
    "n": 4,
    "max_new_tokens": 8,
    "stop": ["e", "a"],
    "trust_reward": True,
}
EXPERT: dict[str, Any] = {
    "best": {**BEST, "parent": "sft"},
    "better": {"kind": "sft", "parent": "sft", "data": "best", "learning_rate": 0.01},
    "best_again": {**BEST, "parent": "better"},
    "better_again": {"kind": "sft", "parent": "better", "data": "best_again", "learning_rate": 0.01},
}


@pytest.mark.slow
def test_expert_iteration(pipeline: Pipeline) -> None:
    """Twice best_of_n and sft in a recipe: each policy answers for the next one, and a second run has nothing to do."""
    recipe = set_in_recipe(pipeline.recipe, {f"stages.{name}": stage for name, stage in EXPERT.items()})
    made = align.run(recipe, pipeline.store)
    assert made["sft"].digest == pipeline.made["sft"].digest
    before, after = (made[name].metrics["score/mean"] for name in ("best", "best_again"))
    assert before != after and made["best"].metrics["score/kept"] > before
    assert made["better_again"].parents["parent"] == made["better"].digest
    assert made["better"].data["data"] != made["better_again"].data["data"]
    assert align.run(recipe, pipeline.store) == made
