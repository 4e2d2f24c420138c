"""What two steps of every stage give, to four digits. A change here must come with a higher version in the stage's
file."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from align import best_of_n, evaluate, merge, pairs
from align.report.glossary import MEANINGS, explained
from align.store import Artifact
from align.watching.shown import HIDDEN
from tests.conftest import Pipeline
from tests.stages import test_distill, test_preferences
from tests.stages.helpers import GROUPS, history, run

# stage: (version, what it gave). Made with fp32, one thread, seed 3, by the recipe in tests/conftest.py on its small
# world.
GOLDEN: dict[str, tuple[int, dict[str, float]]] = {
    "pretrain": (4, {"eval/loss": 5.665106, "loss": 5.710987, "first/grad_norm": 1.682071, "first/loss": 5.746376}),
    "sft": (4, {"eval/loss": 5.623616, "loss": 5.64751, "first/grad_norm": 0.22955, "first/loss": 5.706007}),
    "reward": (
        5,
        {"eval/calibration_error": 0.498944, "loss": 0.691692, "first/grad_norm": 0.316272, "first/loss": 0.693147},
    ),
    "dpo": (
        5,
        {"loss": 0.621155, "rewards/chosen": 0.035453, "rewards/margins": 0.149591, "first/grad_norm": 0.382895},
    ),
    "simpo": (1, {"loss": 1.042425, "rewards/margins": 0.392943, "first/grad_norm": 0.463044, "first/loss": 1.217582}),
    "cpo": (1, {"loss": 5.716508, "rewards/margins": 1.770173, "first/grad_norm": 0.255185, "first/loss": 5.778299}),
    "orpo": (2, {"loss": 5.6163, "rewards/margins": 0.016097, "first/grad_norm": 0.246065, "first/loss": 5.705113}),
    "kto": (1, {"loss": 0.482244, "eval/loss": 0.47945, "rewards/chosen": 0.030926, "first/grad_norm": 0.047767}),
    "bco": (1, {"loss": 0.658298, "eval/loss": 0.652952, "shift": -0.019268, "first/grad_norm": 0.095535}),
    "ppo": (
        5,
        {
            "entropy": 5.696734,
            "length": 8.0,
            "reward/mean": 0.002528,
            "value/explained_variance": 0.003677,
            "first/grad_norm": 0.185398,
            "first/loss": 0.031587,
        },
    ),
    "grpo": (
        4,
        {"entropy": 5.696727, "length": 8.0, "reward/mean": 0.003529, "first/grad_norm": 0.095108, "first/loss": 0.0},
    ),
    "rloo": (
        4,
        {"entropy": 5.696727, "length": 8.0, "reward/mean": 0.003529, "first/grad_norm": 0.385828, "first/loss": -0.0},
    ),
    "reinforce_pp": (
        4,
        {"entropy": 5.69675, "length": 8.0, "reward/mean": 0.003642, "first/grad_norm": 0.112866, "first/loss": -0.0},
    ),
    "online_dpo": (
        1,
        {
            "entropy": 5.69675,
            "length": 8.0,
            "reward/mean": 0.003642,
            "first/grad_norm": 0.16778,
            "first/loss": 0.693147,
        },
    ),
    "pairs": (5, {"eos_rate": 0.0, "flipped": 0.0, "pairs": 8, "prompts": 8, "score/mean": 10.28125}),
    "best_of_n": (1, {"eos_rate": 0.375, "rows": 8, "score/kept": 6.5, "score/mean": 7.21875}),
    "distill": (
        1,
        {"start/kl": 0.004879, "eval/kl": 0.001529, "loss": 0.000467, "first/grad_norm": 0.001436},
    ),
    "merge": (4, {"kl": 0.0, "logit_max_abs_diff": 0.0}),
    "evaluate": (
        8,
        {
            "base/eos_rate": 0.0,
            "base/kl": -0.031488,
            "base/length": 8.0,
            "base/letters": 9.5,
            "base/loss": 5.690585,
            "base/win_rate_vs_sft": 0.4375,
            "dpo/eos_rate": 0.0,
            "dpo/kl": -0.057407,
            "dpo/length": 8.0,
            "dpo/letters": 10.0,
            "dpo/loss": 5.586588,
            "dpo/win_rate_vs_sft": 0.625,
            "sft/eos_rate": 0.0,
            "sft/kl": 0.0,
            "sft/length": 8.0,
            "sft/letters": 10.25,
            "sft/loss": 5.630401,
        },
    ),
}


def check(stage: str, artifact: Artifact, first: dict[str, float]) -> None:
    version, golden = GOLDEN[stage]
    found = {
        k: v for k, v in {**artifact.metrics, **{f"first/{k}": v for k, v in first.items()}}.items() if k in golden
    }
    wrong = [
        f"{k}: {found.get(k)}, was {v}"
        for k, v in golden.items()
        if found.get(k) != pytest.approx(v, abs=2e-4, rel=2e-4)
    ]
    now = importlib.import_module(f"align.{stage}").STAGE.version
    assert not (wrong and now == version), (
        f"{stage} gives other results than before ({'; '.join(wrong)}). If that is meant, raise the version in "
        f"align/{stage}.py's STAGE (it is {now}), so that stores know that what they hold is of the old kind, and put "
        "the new figures here. If only the recipe of tests/conftest.py changed, put the new figures here."
    )
    unexplained = {name for name in first if not explained([name])} - {"step", *HIDDEN}
    assert not unexplained, f"what is it? Say so in align/report/glossary.py: {unexplained}"
    assert not wrong and now == version, f"align/{stage}.py has version {now}; put its figures here: {found}"


@pytest.mark.parametrize("stage", GROUPS)
def test_stages_of_groups(stage: str, pipeline: Pipeline) -> None:
    made = run(pipeline, stage)
    check(stage, made, history(made, pipeline.store)[0])


@pytest.mark.parametrize("stage", ["simpo", "cpo", "orpo", "kto", "bco"])
def test_other_preferences(stage: str, pipeline: Pipeline) -> None:
    made = test_preferences.run(pipeline, stage)
    check(stage, made, history(made, pipeline.store)[0])


def test_distillation(pipeline: Pipeline) -> None:
    made = test_distill.run(
        pipeline, base=str(test_distill.small(pipeline)), method="full", lmbda=0.5, max_new_tokens=8
    )
    check("distill", made, history(made, pipeline.store)[0])


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo", "ppo"])
def test_training_stages(stage: str, trained: Pipeline) -> None:
    rows = history(trained.made[stage], trained.store)
    check(stage, trained.made[stage], rows[0])
    for name in {"accuracy", "rewards/accuracies"} & rows[
        0
    ].keys():  # but for rounding all are equal, and none is right
        assert rows[0][name] <= 0.125 < rows[-1][name] and "begins near 0" in MEANINGS[name]


def test_other_stages(pipeline: Pipeline) -> None:
    judge = pipeline.recipe.with_name("judge.py")
    judge.write_text("def score(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    prompts = pipeline.recipe.parent / "prompts.jsonl"
    common: dict[str, Any] = {"seed": 3, "precision": "fp32", "threads": 1}
    sampling: dict[str, Any] = {"data": prompts, "max_new_tokens": 8, **common}
    check("pairs", pairs.run(pairs.Config(parent="tiny/sft", judge=f"{judge}:score", **sampling), pipeline.store), {})
    best = best_of_n.Config(parent="tiny/sft", judge=f"{judge}:score", stop=["e", "a"], **sampling)
    check("best_of_n", best_of_n.run(best, pipeline.store), {})
    check("merge", merge.run(merge.Config(parent="tiny/dpo", **common), pipeline.store), {})
    compare: dict[str, Any] = {
        "compare": ["tiny/sft", "tiny/dpo"],
        "judges": {"letters": f"{judge}:score"},
        "texts": pipeline.recipe.parent / "sft.jsonl",
    }
    check("evaluate", evaluate.run(evaluate.Config(**compare, **sampling), pipeline.store), {})
