"""Win rates and intervals by hand, and a report whose figures follow from the samples that it stores."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from align import evaluate
from align.core.metrics import bootstrap, pair_statistics, wilson
from align.errors import AlignError, InputError
from tests.conftest import Pipeline, write_rows

JUDGE = """
def letters(prompts, completions, answer, **columns):
    assert all(m["role"] in ("system", "user") and isinstance(m["content"], str) for dialogue in prompts for m in dialogue)
    assert [len(c) for c in completions] == [1] * len(prompts) and len(answer) == len(prompts)
    assert answer == ["one", None, "three", "four"]
    return [float(len(c[0]["content"])) for c in completions]

def never(prompts, completions, **columns):
    return [0.0] * len(completions)

def shy(prompts, completions, answer, completion_ids, **columns):
    # No score where the row has no answer; else tokens.
    return [a and len(ids) for a, ids in zip(answer, completion_ids)]

def silent(completions, **columns):
    return [None] * len(completions)
"""


def test_win_rates_by_hand() -> None:
    """Against a: b wins on 1 of 4, ties on 2, loses 1: (1 + 2 / 2) / 4. The second judge decides no wins."""
    scores = {
        "gold": {"a": [1.0, 0.0, 1.0, 0.5], "b": [1.0, 1.0, 0.0, 0.5], "c": [2.0, 2.0, 2.0, 2.0]},
        "manners": {"a": [0.0] * 4, "b": [1.0] * 4, "c": [0.0] * 4},
    }
    found = evaluate.compare(scores, against="a")
    assert found["b/win_rate_vs_a"] == 0.5 and found["c/win_rate_vs_a"] == 1.0 and "a/win_rate_vs_a" not in found
    assert found["c/win_rate_vs_a_ci95"] == [1.0, 1.0]
    assert found["a/gold"] == 0.625 and found["b/manners"] == 1.0 and found["b/manners_ci95"] == [1.0, 1.0]
    assert evaluate.compare(scores, against="b")["a/win_rate_vs_b"] == 0.5
    assert sorted(k for k in found if "win_rate" in k) == sorted(f"{n}/win_rate_vs_a{s}" for n in "bc" for s in ("", "_ci95"))


def test_bootstrap_has_the_spread_of_a_mean() -> None:
    """Of a share p over n items: p ± 1.96 sqrt(p (1 - p) / n), here 0.65 ± 0.0540; four times the items halve it."""
    for n, half in ((300, 0.0540), (1200, 0.0270)):
        low, high = bootstrap([1.0] * (65 * n // 100) + [0.0] * (35 * n // 100))
        assert low == pytest.approx(0.65 - half, abs=0.006) and high == pytest.approx(0.65 + half, abs=0.006)
    assert bootstrap([0.3] * 50) == pytest.approx((0.3, 0.3))
    assert bootstrap([0.0, 1.0] * 50) == bootstrap([0.0, 1.0] * 50)  # the same figures every time


def test_pair_statistics_by_hand() -> None:
    """Four pairs: right, wrong, tie, right -> 2.5 / 4. "The shorter one" is right on 3 of 4. Wilson 1927 for 2.5 of 4: (0.2095, 0.9136)."""
    scores = [2.0, 0.0, 0.0, 2.0, 1.0, 1.0, 3.0, 0.0]
    lengths = np.array([3, 5, 2, 4, 1, 9, 8, 7])
    found = pair_statistics(scores, lengths)
    assert found["eval/accuracy"] == 0.625 and found["eval/pairs"] == 4 and found["eval/length_baseline_accuracy"] == 0.75
    p, n, z2 = 0.625, 4, 1.959964**2
    centre, half = (p + z2 / 8) / (1 + z2 / n), 1.959964 / (1 + z2 / n) * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    assert found["eval/accuracy_ci95"] == pytest.approx([centre - half, centre + half])
    # bins of confidence: sigmoid(2) twice with one right, sigmoid(0) with half right, sigmoid(3) with one right
    s2, s3 = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-3))
    by_bins = 0.5 * abs(s2 - 0.5) + 0.25 * 0.0 + 0.25 * abs(s3 - 1.0)
    assert found["eval/calibration_error"] == pytest.approx(by_bins)
    assert wilson(0, 10)[0] == pytest.approx(0.0) and wilson(10, 10)[1] == pytest.approx(1.0)
    assert pair_statistics([], np.array([])) == {}


def config(pipeline: Pipeline, folder: Path, **changes: object) -> evaluate.Config:
    (folder / "judge.py").write_text(JUDGE)
    questions = ["The cup is red. Which colour is the cup?", "Hi", "Which colour?", "Is the box blue?"]
    answers = (
        {"answer": "one", "best": "It is."},
        {"best": "No."},
        {"answer": "three", "best": "Yes."},
        {"answer": "four", "best": "Red!"},
    )
    data = write_rows(folder / "heldout.jsonl", [{"prompt": q, **a} for q, a in zip(questions, answers, strict=True)])
    settings = {
        "compare": ["tiny/sft", "tiny/dpo"],
        "data": data,
        "judges": {"letters": f"{folder}/judge.py:letters", "never": f"{folder}/judge.py:never"},
        "baselines": ["best"],
        "reward": "tiny/reward",
        "pairs": pipeline.recipe.parent / "pairs.jsonl",
        "texts": pipeline.recipe.parent / "sft.jsonl",
        "max_new_tokens": 8,
        "precision": "fp32",
        "threads": 1,
    }
    return evaluate.Config(**{**settings, **changes})  # type: ignore[arg-type]


def test_figures_follow_from_the_samples(pipeline: Pipeline, tmp_path: Path) -> None:
    made = evaluate.run(config(pipeline, tmp_path), pipeline.store)
    rows = [json.loads(line) for line in pipeline.store.read(made, "samples.jsonl").splitlines()]
    assert len(rows) == 4 and list(rows[0]) == ["prompt", "base", "sft", "dpo", "best"]
    for name in ("base", "sft", "dpo", "best"):
        lengths = [len(row[name]["text"]) for row in rows]
        assert [row[name]["letters"] for row in rows] == lengths and made.metrics[f"{name}/never"] == 0.0
        if name != "sft":
            wins = [0.5 + (n > o) / 2 - (n < o) / 2 for n, o in zip(lengths, (len(row["sft"]["text"]) for row in rows), strict=True)]
            assert made.metrics[f"{name}/win_rate_vs_sft"] == fmean(wins)
    assert [row["best"]["text"] for row in rows] == ["It is.", "No.", "Yes.", "Red!"]
    assert made.metrics["sft/kl"] == 0.0 and abs(made.metrics["dpo/kl"]) > 1e-3 and abs(made.metrics["base/kl"]) > 1e-3
    assert made.metrics["reward/pairs"] == 40 and 0 <= made.metrics["reward/accuracy"] <= 1
    assert made.metrics["dpo/loss"] != made.metrics["sft/loss"] and made.metrics["sft/perplexity"] == pytest.approx(
        np.exp(made.metrics["sft/loss"])
    )
    page = pipeline.store.read(made, "report.html").decode()
    assert "dpo" in page and "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"against": "ppo"}, "against: 'ppo' is not among what is compared (sft, dpo)."),
        ({"judges": {"kl": "judge.py:letters"}}, "judges: kl is what evaluate itself measures; call the judge something else."),
        ({"data": None, "baselines": []}, "no effect: there are no prompts to answer. Set data, or leave it out."),
    ],
)
def test_refused_before_anything_is_loaded(
    changes: dict[str, object], message: str, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.core.load.load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        evaluate.run(config(pipeline, tmp_path, **changes), pipeline.store)
    assert str(error.value).splitlines()[-1].endswith(message)


def test_two_that_would_have_one_name_are_refused(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results go by the end of a ref: the second of a name would take the first one's place."""
    monkeypatch.setattr("align.core.load.load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    for ref in ("other/sft", "other/dpo"):
        pipeline.store.tag(ref, "tiny/dpo")
    for refs, name in ((["tiny/sft", "tiny/dpo", "other/sft"], "sft"), ([pipeline.made["dpo"].digest, "tiny/dpo"], "dpo")):
        with pytest.raises(InputError) as error:
            evaluate.run(config(pipeline, tmp_path, compare=refs), pipeline.store)
        assert str(error.value).startswith(f"compare: {refs[0]} and {refs[-1]} would both be called {name} in the results ")


@pytest.mark.parametrize(
    ("ref", "changes", "message"),
    [
        (
            "other/base",
            {},
            "compare: an artifact and the bare base (include_base) would both be called base in the results; set include_base",
        ),
        (
            "other/reward",
            {},
            "compare: an artifact and the reward model would both be called reward in the results; give one another name.",
        ),
        (None, {"baselines": ["sft"]}, "baselines: a column of data and an artifact of compare would both be called sft in the results; "),
        (None, {"baselines": ["base"]}, "baselines: a column of data and the bare base (include_base) would both be called base in the"),
        (
            None,
            {"baselines": ["best", "best"]},
            "baselines: a column of data and a column of data would both be called best in the results",
        ),
        ("other/base", {"include_base": False, "against": "quux"}, "against: 'quux' is not among what is compared (sft, base)."),
    ],
)
def test_columns_of_one_name_are_refused(
    ref: str | None, changes: dict[str, object], message: str, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bare base, the reward model and baselines have columns of their own. Negative control: without the bare base its name is free."""
    monkeypatch.setattr("align.core.load.load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    if ref:
        pipeline.store.tag(ref, "tiny/dpo")
        changes = {"compare": ["tiny/sft", ref], **changes}
    with pytest.raises(InputError) as error:
        evaluate.run(config(pipeline, tmp_path, **changes), pipeline.store)
    assert str(error.value).startswith(message)


def test_answers_without_a_score_are_left_out_and_counted(pipeline: Pipeline, tmp_path: Path) -> None:
    """The second row has none: means are over the other three, and so are win rates. All None is an error."""
    plain = config(pipeline, tmp_path)
    judged = plain.model_copy(update={"judges": {"tokens": f"{tmp_path}/judge.py:shy"}})
    made = evaluate.run(judged, pipeline.store)
    rows = [json.loads(line) for line in pipeline.store.read(made, "samples.jsonl").splitlines()]
    for name in ("base", "sft", "dpo", "best"):
        scores = [row[name]["tokens"] for row in rows]
        assert scores[1] is None and min(s for s in scores if s is not None) >= 1
        assert made.metrics[f"{name}/tokens"] == pytest.approx(fmean(s for s in scores if s is not None))
        assert made.metrics[f"{name}/tokens_unscored"] == 1
    wins = [0.5 + (n > o) / 2 - (n < o) / 2 for n, o in ((r["dpo"]["tokens"], r["sft"]["tokens"]) for r in (rows[0], *rows[2:]))]
    assert made.metrics["dpo/win_rate_vs_sft"] == pytest.approx(fmean(wins))
    with pytest.raises(AlignError, match=r"judges\.tokens gave no answer of base a score"):
        evaluate.run(plain.model_copy(update={"judges": {"tokens": f"{tmp_path}/judge.py:silent"}}), pipeline.store)
