"""Win rates and intervals by hand, and a report whose figures follow from the samples that it stores."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from align import evaluate, evaluation, measures, merge, models, sft
from align import pipeline as pipelines
from align.data.records import Message, Prompt
from align.evaluation import columns, written
from align.ground.errors import AlignError, InputError
from align.measures.intervals import share_interval
from align.measures.statistics import pair_statistics, prefers_longer
from align.packed.attention import native_attention
from align.report.html import html
from align.report.lists import lineage_text
from align.report.summary import Report, duration
from align.report.text import show_text
from align.stage.command import main
from tests.conftest import Pipeline, write_rows

JUDGE = """
def letters(prompts, completions, answer, **columns):
    '''As many
    as it has letters.

    Not more.'''
    assert all(isinstance(text, str) for text in [*prompts, *completions])
    assert len(completions) == len(prompts) == len(answer)
    assert answer == [a for a in ("one", None, "three", "four") for _ in range(len(answer) // 4)]
    return [float(len(c)) for c in completions]

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
    found = evaluation.comparison.compare(scores, against="a")
    assert found["b/win_rate_vs_a"] == 0.5 and found["c/win_rate_vs_a"] == 1.0 and "a/win_rate_vs_a" not in found
    wilson = stats.binomtest(4, 4).proportion_ci(method="wilson")  # that c won every time does not make it sure
    assert found["c/win_rate_vs_a_ci95"] == pytest.approx([wilson.low, wilson.high], abs=1e-6)
    assert found["b/manners_ci95"] == found["c/win_rate_vs_a_ci95"]
    student = stats.t.interval(0.95, 3, 0.625, stats.sem([1.0, 0.0, 1.0, 0.5]))
    assert (
        found["a/gold"] == 0.625
        and found["b/manners"] == 1.0
        and found["a/gold_ci95"] == pytest.approx(list(student), abs=2e-3)
    )
    assert evaluation.comparison.compare(scores, against="b")["a/win_rate_vs_b"] == 0.5
    assert sorted(k for k in found if "win_rate" in k) == sorted(
        f"{n}/win_rate_vs_a{s}" for n in "bc" for s in ("", "_ci95")
    )


def test_win_rates_of_several_answers_by_hand() -> None:
    """Each against each within a prompt: b's 2 and 0 against a's 1 and 0 win 2, tie 1, lose 1 of 4; its 3 and 3 against
    3 and 4 tie 2 and lose 2; a column has one answer, a's 1 and 0 against its 0 win 1 and tie 1. Negative control:
    neighbours alone."""
    a, b, column = [[1.0, 0.0], [3.0, 4.0]], [[2.0, 0.0], [3.0, 3.0]], [[0.0], [5.0]]
    found = evaluation.comparison.compare({"gold": {"a": a, "b": b, "column": column}}, against="a")
    assert found["b/win_rate_vs_a"] == ((2 + 0.5) / 4 + (0 + 1) / 4) / 2 != (0.75 + 0.25) / 2
    assert found["column/win_rate_vs_a"] == ((0 + 0.5) / 2 + 1) / 2 and found["b/gold"] == 2.0
    assert found["b/win_rate_vs_a_ci95"] == list(measures.intervals.share_interval([0.625, 0.25]))


def test_answers_without_a_score_by_hand() -> None:
    """They are left out and counted: a's 1 against b's 0 and 2 in the first prompt; nothing to compare in the
    second."""
    scores: dict[str, Any] = {"gold": {"a": [[1.0, None], [None, None]], "b": [[0.0, 2.0], [4.0, 4.0]]}}
    found = evaluation.comparison.compare(scores, against="a")
    assert found["a/gold"] == 1.0 and found["a/gold_unscored"] == 3 and "b/gold_unscored" not in found
    assert found["b/win_rate_vs_a"] == 0.5 and found["b/gold"] == 2.5
    scores["gold"]["a"] = [[None, None], [None, None]]
    with pytest.raises(
        AlignError, match=r"^judge: gold gave none of 4 answers of a a score: all are None\. Look at the judge\.$"
    ):
        evaluation.comparison.compare(scores, against="a")


def test_intervals_beside_each_other_are_of_one_kind() -> None:
    """Scores of 0 alone beside others on no scale of 0 to 1 have Student's interval too; where all are 0 or 1, all have
    Wilson's."""
    found = evaluation.comparison.compare({"gold": {"a": [0.0] * 4, "b": [3.0, 5.0, 2.0, 9.0]}}, against="a")
    assert found["a/gold_ci95"] == [0.0, 0.0]
    found = evaluation.comparison.compare({"gold": {"a": [0.0] * 4, "b": [1.0, 0.0, 1.0, 1.0]}}, against="a")
    wilson = stats.binomtest(0, 4).proportion_ci(method="wilson")
    assert found["a/gold_ci95"] == pytest.approx([wilson.low, wilson.high], abs=1e-6)


def test_probabilities_of_a_model_that_is_asked_are_shares() -> None:
    """Their interval stays in [0, 1], where Student's, as a judge's scores have it, does not; with one prompt, too."""
    table = {"g1": [0.99, 0.98, 0.05]}
    found = evaluation.comparison.compare({"judge_prompt": table}, against="g1")["g1/judge_prompt_ci95"]
    assert found == list(share_interval(table["g1"])) and 0 <= found[0] < 0.5 < found[1] <= 1
    student = evaluation.comparison.compare({"gold": table}, against="g1")["g1/gold_ci95"]
    assert student[0] < 0 and student[1] > 1  # negative control
    low, high = evaluation.comparison.compare({"judge_prompt": {"g1": [0.9]}}, against="g1")["g1/judge_prompt_ci95"]
    assert 0 <= low < 0.9 < high <= 1


def test_the_answer_of_a_baseline(tmp_path: Path) -> None:
    """A text, or the last message's content; its Python form and a null are no answers."""
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]

    def prompt(value: Any) -> Prompt:
        return Prompt((Message("user", "Hi"),), {"best": value}, "d.jsonl:7")

    assert columns.answer_in(prompt("None"), "best") == "None" and columns.answer_in(prompt(said), "best") == "Hello"
    for baselines, limit in ((["best"], None), ([], None), (["best"], 1)):
        rows = write_rows(tmp_path / "d.jsonl", [{"prompt": "Hi", "best": "Hello"}, {"prompt": "Hi", "best": None}])
        read = evaluate.readers(evaluate.Config(compare=["x"], data=rows, baselines=baselines, limit=limit))["data"]
        if baselines and limit is None:  # as a dry run does
            with pytest.raises(InputError, match=r"d\.jsonl:2: best, one of baselines, is null; expected text\.$"):
                read(rows, "error", sample=10)
        else:
            assert len(list(read(rows, "error", sample=10))) == 2
    wrong = {
        "is null": None,
        "is 3": 3,
        "ends with what the user says": said[:1],
        "message 1 of": ["Hello"],
        "is an empty list": [],
    }
    for words, value in wrong.items():
        with pytest.raises(InputError, match=rf"^d\.jsonl:7: .*best.*{words}|^d\.jsonl:7: {words} .best"):
            columns.answer_in(prompt(value), "best")


def test_a_policy_beside_itself_wins_half() -> None:
    """500 simulated evaluations of 60 prompts with three answers each of some score: 0.5 is inside in 95 +- 2 %,
    whether there are few or many ties, one answer or several. Negative control: what a difference of 0.06 would
    give."""
    draw = np.random.default_rng(5)
    for answers, values in ((1, 2), (1, 100), (3, 4)):
        inside, moved = 0, 0
        for _ in range(500):
            easy = draw.random((60, 1))  # some prompts are easier than others, for both
            one, other = (np.floor(values * (0.3 * easy + 0.7 * draw.random((60, answers)))) for _ in range(2))
            found = evaluation.comparison.compare({"gold": {"one": one, "other": other}}, against="one")
            low, high = found["other/win_rate_vs_one_ci95"]
            inside += low <= 0.5 <= high
            moved += low + 0.06 <= 0.5 <= high + 0.06
        assert 0.93 <= inside / 500 <= 0.97 and moved / 500 < inside / 500 - 0.05


def test_pair_statistics_by_hand() -> None:
    """Four pairs: right, wrong, tie, right -> 2.5 / 4. "The shorter one" is right on 3 of 4, "the longer one" on 1."""
    scores = [2.0, 0.0, 0.0, 2.0, 1.0, 1.0, 3.0, 0.0]
    lengths = np.array([3, 5, 2, 4, 1, 9, 8, 7])
    found = pair_statistics(scores, lengths, "abcd", longer=False)
    assert (
        found["eval/accuracy"] == 0.625 and found["eval/pairs"] == 4 and found["eval/length_baseline_accuracy"] == 0.75
    )
    assert found["eval/prompts"] == 4 and found["eval/accuracy_ci95"] == list(
        measures.intervals.share_interval([1.0, 0.0, 0.5, 1.0])
    )
    # bins of confidence: sigmoid(2) twice with one right, sigmoid(0) with half right, sigmoid(3) with one right
    s2, s3 = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-3))
    by_bins = 0.5 * abs(s2 - 0.5) + 0.25 * 0.0 + 0.25 * abs(s3 - 1.0)
    assert found["eval/calibration_error"] == pytest.approx(by_bins)
    # two prompts of two pairs each: half right and 0.75 right
    together = pair_statistics(scores, lengths, "aabb", longer=True)
    assert together["eval/accuracy"] == 0.625 and together["eval/length_baseline_accuracy"] == 0.25
    assert together["eval/accuracy_ci95"] == list(measures.intervals.share_interval([0.5, 0.75]))
    assert pair_statistics([], np.array([]), [], longer=True) == {}
    assert "eval/length_baseline_accuracy" not in pair_statistics(scores, lengths, "abcd", longer=None)


def test_a_report_says_how_often_the_reward_model_is_right() -> None:
    """With its interval and what length alone reaches. Negative control: a report without pairs says nothing of it."""
    figures = {"reward/accuracy": 0.648, "reward/accuracy_ci95": [0.538, 0.744], "reward/pairs": 145, "sft/reward": 0.3}
    said = "the reward model scores the chosen answer higher in 64.8% (95%: 53.8 to 74.4) of 145 pairs"
    assert evaluation.written.of_pairs(figures) == [f"{said}; 50% is chance"]
    with_length = figures | {"reward/length_baseline_accuracy": 0.552}
    assert evaluation.written.of_pairs(with_length) == [f"{said}, length alone in 55.2%; 50% is chance"]
    assert evaluation.written.of_pairs({"sft/reward": 0.3, "sft/accuracy": 0.5}) == []


def test_the_length_rule_is_learnt_on_other_pairs() -> None:
    """Negative control: the better of both rules on the very pairs that are measured, which is right more often than
    length is."""
    assert not prefers_longer(np.array([3, 5, 2, 4, 1, 9, 8, 7])) and prefers_longer(np.array([5, 3, 1, 1]))
    draw, rule, better = np.random.default_rng(0), [], []
    for _ in range(300):
        training, held_out = draw.integers(5, 30, 200), draw.integers(5, 30, 40)
        rule.append(
            pair_statistics(np.zeros(40), held_out, range(20), prefers_longer(training))[
                "eval/length_baseline_accuracy"
            ]
        )
        better.append(max(rule[-1], 1 - rule[-1]))
    assert np.mean(rule) == pytest.approx(0.5, abs=0.02) and np.mean(better) > 0.57


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
    return evaluate.Config(**{k: v for k, v in {**settings, **changes}.items() if v is not None})  # type: ignore[arg-type]


def test_figures_follow_from_the_samples(pipeline: Pipeline, tmp_path: Path) -> None:
    made = evaluate.run(config(pipeline, tmp_path), pipeline.store)
    rows = [json.loads(line) for line in pipeline.store.read(made, "samples.jsonl").splitlines()]
    assert len(rows) == 4 and list(rows[0]) == ["prompt", "base", "sft", "dpo", "best"]
    for name in ("base", "sft", "dpo", "best"):
        lengths = [len(row[name]["text"]) for row in rows]
        assert [row[name]["letters"] for row in rows] == lengths and made.metrics[f"{name}/never"] == 0.0
        if name != "sft":
            wins = [
                0.5 + (n > o) / 2 - (n < o) / 2
                for n, o in zip(lengths, (len(row["sft"]["text"]) for row in rows), strict=True)
            ]
            assert made.metrics[f"{name}/win_rate_vs_sft"] == fmean(wins)
    assert [row["best"]["text"] for row in rows] == ["It is.", "No.", "Yes.", "Red!"]
    assert made.metrics["sft/kl"] == 0.0 and abs(made.metrics["dpo/kl"]) > 1e-3 and abs(made.metrics["base/kl"]) > 1e-3
    assert made.metrics["reward/pairs"] == 40 and 0 <= made.metrics["reward/accuracy"] <= 1
    none: dict[str, object] = dict.fromkeys(("data", "judges", "baselines", "texts", "max_new_tokens"))
    for report in (made, evaluate.run(config(pipeline, tmp_path, **none), pipeline.store)):  # the second has no table
        of_pairs = f"The {evaluation.written.of_pairs(report.metrics)[0][4:]}."
        for file in ("table.txt", "report.html"):
            assert of_pairs in " ".join(pipeline.store.read(report, file).decode().split())
    assert made.metrics["dpo/loss"] != made.metrics["sft/loss"] and made.metrics["sft/perplexity"] == pytest.approx(
        np.exp(made.metrics["sft/loss"])
    )
    page = pipeline.store.read(made, "report.html").decode()
    assert (
        "own words, letters: As many as it has letters." in page
    )  # and of never, which says nothing, there is nothing
    assert "dpo" in page and "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page


def test_the_cost_of_all_that_the_lineage_names(pipeline: Pipeline) -> None:
    """What reinforcement learning costs includes its reward model; negative control: sft's own line has none."""
    found = written.costs(pipeline.store, {"ppo": pipeline.made["ppo"]})
    assert next(iter(found)) == "ppo" and {*found} == {"ppo", "tiny/reward", "tiny/sft", "tiny/pretrain"}
    shown = lineage_text(pipeline.store, pipeline.made["ppo"].digest)
    assert all(name in shown for name in found) and "tiny/dpo" not in shown
    assert [*written.costs(pipeline.store, {"sft": pipeline.made["sft"]})] == ["sft", "tiny/pretrain"]
    page = html(Report("t", ["ppo"], {}, costs=found))
    assert f">{duration(sum(cost['seconds'] for cost in found.values()))}</td>" in page.partition(">all<")[2]


def test_a_judge_is_shown_by_its_first_digits(pipeline: Pipeline) -> None:
    """As everywhere; negative control: digits that are no digest stay."""
    told = {"gold": f"{'ab' * 32}:score", "long": "9" * 70}
    made = replace(pipeline.made["ppo"], stage="grpo", config={"judges": told})
    (shown,) = (setting.value for setting in written.settings_of(pipeline.store, made) if setting.name == "judges")
    assert shown == f"{{gold: {'ab' * 6}:score, long: {'9' * 70}}}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"against": "ppo"}, "against: 'ppo' is not among what is compared (sft, dpo, base)."),
        (
            {"data": None, "baselines": [], "judges": {}},
            "no effect: there are no prompts to answer. Set data, or leave it out.",
        ),
    ],
)
def test_refused_before_anything_is_loaded(
    changes: dict[str, object], message: str, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.models.base.load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        evaluate.run(config(pipeline, tmp_path, **changes), pipeline.store)
    assert str(error.value).splitlines()[-1].endswith(message)


def test_two_that_would_have_one_name_are_refused(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results go by the end of a ref: the second of a name would take the first one's place; and models are bases of
    their own."""
    merge.run(merge.Config(parent="tiny/dpo", name="merged", max_kl=1.0, threads=1), pipeline.store)
    monkeypatch.setattr("align.models.base.load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    for ref in ("other/sft", "other/dpo"):
        pipeline.store.tag(ref, "tiny/dpo")
    for refs, name in (
        (["tiny/sft", "tiny/dpo", "other/sft"], "sft"),
        (["tiny/dpo", "other/dpo"], "dpo"),
    ):
        with pytest.raises(InputError) as error:
            evaluate.run(config(pipeline, tmp_path, compare=refs), pipeline.store)
        assert str(error.value).startswith(
            f"compare: {refs[0]} and {refs[-1]} would both be called {name} in the results "
        )
        assert str(error.value).endswith(f"`align tag {refs[-1]} NAME`.")
    for compare, message in (
        (
            ["tiny/sft", "merged"],
            "compare: merged is a model artifact .*: name what it was merged from, (other|tiny)/(sft|dpo), ",
        ),
        (
            ["tiny/sft", "tiny/pretrain"],
            r"a model is a base of its own: name an adapter on it, .* as the base \(include_base\)\.$",
        ),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.run(config(pipeline, tmp_path, compare=compare), pipeline.store)


@pytest.mark.parametrize(
    ("ref", "changes", "message"),
    [
        (
            "other/base",
            {},
            "compare: an artifact and the bare base (include_base) would both be called base in the results; set "
            "include_base",
        ),
        (
            "other/reward",
            {},
            "compare: an artifact and the reward model would both be called reward in the results; give one another "
            "name.",
        ),
        (
            None,
            {"baselines": ["sft"]},
            "baselines: a column of data and an artifact of compare would both be called sft in the results; ",
        ),
        (
            None,
            {"baselines": ["base"]},
            "baselines: a column of data and the bare base (include_base) would both be called base in the",
        ),
        (
            None,
            {"baselines": ["best", "best"]},
            "baselines: a column of data and a column of data would both be called best in the results",
        ),
        (
            "other/prompt",
            {},
            "compare: an artifact is called 'prompt', which cannot be a column of the results: evaluate writes "
            "prompt, ",
        ),
        ("other/sample", {}, "compare: an artifact is called 'sample', which cannot be a column of the results"),
        ("other/x_ci95", {}, "compare: an artifact is called 'x_ci95', which cannot be a column of the results"),
        (
            None,
            {"baselines": ["a\x1b[31m"]},
            "baselines: a column of data is called 'a\\x1b[31m', which cannot be a column of the results",
        ),
        (
            "other/base",
            {"include_base": False, "against": "quux"},
            "against: 'quux' is not among what is compared (sft, base).",
        ),
    ],
)
def test_columns_of_one_name_are_refused(
    ref: str | None,
    changes: dict[str, object],
    message: str,
    pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bare base, the reward model and baselines have columns of their own. Negative control: without the bare base
    its name is free."""
    monkeypatch.setattr("align.models.base.load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    if ref:
        pipeline.store.tag(ref, "tiny/dpo")
        changes = {"compare": ["tiny/sft", ref], **changes}
    with pytest.raises(InputError) as error:
        evaluate.run(config(pipeline, tmp_path, **changes), pipeline.store)
    assert str(error.value).startswith(message)


def test_alone_it_prints_its_table(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `align run` ends with and `align show` holds, above the name and digest; with --json there is the manifest
    alone."""
    given = {
        "store": pipeline.store.path,
        "data": pipeline.recipe.with_name("prompts.jsonl"),
        "compare": "tiny/sft",
        "max_new_tokens": 4,
    }
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))] + [
        "--precision",
        "fp32",
        "--threads",
        "1",
    ]

    def printed(*more: str) -> str:
        monkeypatch.setattr("sys.argv", ["align evaluate", *words, *more])
        main(evaluate.STAGE, evaluate.run, "")
        return capsys.readouterr().out

    out = printed()
    made = pipeline.store.resolve("evaluate")
    table = pipeline.store.read(made, "table.txt").decode().rstrip()
    assert (
        out.startswith(f"{table}\n") and "ends with EOS" in table and out.splitlines()[-1] == f"evaluate {made.digest}"
    )
    assert table in show_text(pipeline.store, "evaluate")
    assert json.loads(printed("--json"))["digest"] == made.digest

    def becomes(*more: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(printed("--dry-run", "--json", *more))["stages"]["evaluate"]
        return found

    assert {k: v for k, v in becomes().items() if k != "memory"} == {"verdict": "skip", "digest": made.digest}
    other = becomes("--seed", "9")
    assert (other["verdict"], other["why"]) == ("run", "seed 0 -> 9") and "memory" in other
    moves = f"evaluate: the name points at {made.short}, and will at what this makes\n"
    assert moves in printed("--dry-run", "--seed", "9") and moves not in printed("--dry-run")


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
    wins = [
        0.5 + (n > o) / 2 - (n < o) / 2
        for n, o in ((r["dpo"]["tokens"], r["sft"]["tokens"]) for r in (rows[0], *rows[2:]))
    ]
    assert made.metrics["dpo/win_rate_vs_sft"] == pytest.approx(fmean(wins))
    with pytest.raises(
        AlignError, match=r"^judge: tokens gave none of 4 answers of base a score: all are None\. Look at the judge\.$"
    ):
        evaluate.run(plain.model_copy(update={"judges": {"tokens": f"{tmp_path}/judge.py:silent"}}), pipeline.store)


def test_models_draw_by_themselves(pipeline: Pipeline, tmp_path: Path) -> None:
    """One artifact under two names: equal models, other answers; by itself it answers as it does beside others. With
    greedy answers, which draw nothing, they are the same: the negative control."""
    pipeline.store.tag("other/again", "tiny/sft")
    twins: dict[str, object] = {
        "compare": ["tiny/sft", "other/again"],
        "reward": None,
        "pairs": None,
        "texts": None,
        "n": 3,
    }

    def answers(**changes: object) -> dict[str, list[str]]:
        made = evaluate.run(config(pipeline, tmp_path, **twins | changes), pipeline.store)
        rows = [json.loads(line) for line in pipeline.store.read(made, "samples.jsonl").splitlines()]
        return {name: [row[name]["text"] for row in rows] for name in ("base", "sft", "again") if name in rows[0]}

    found = answers()
    assert len(found["sft"]) == 12 and found["sft"] != found["again"]
    assert answers(compare=["tiny/sft"], include_base=False)["sft"] == found["sft"] != answers(seed=1)["sft"]
    greedy = answers(temperature=0.0, n=None)
    assert greedy["sft"] == greedy["again"]


def test_several_answers_to_a_prompt(pipeline: Pipeline, tmp_path: Path) -> None:
    """Figures follow from the samples: a row for each answer, all of a prompt's held against all of the other's."""
    made = evaluate.run(
        config(pipeline, tmp_path, n=3, pairs=None, texts=None, limit=2, judges=one_judge(tmp_path)), pipeline.store
    )
    rows = [json.loads(line) for line in pipeline.store.read(made, "samples.jsonl").splitlines()]
    assert [row["sample"] for row in rows] == [0, 1, 2] * 2 and ["best" in row for row in rows] == [
        True,
        False,
        False,
    ] * 2
    sft, dpo = ([[len(row[name]["text"]) for row in rows[i : i + 3]] for i in (0, 3)] for name in ("sft", "dpo"))
    wins = [
        fmean(0.5 + (x > y) / 2 - (x < y) / 2 for x in mine for y in theirs)
        for mine, theirs in zip(dpo, sft, strict=True)
    ]
    assert made.metrics["dpo/win_rate_vs_sft"] == pytest.approx(fmean(wins))
    assert made.metrics["dpo/letters"] == pytest.approx(fmean(map(fmean, dpo)))
    assert "2 prompts, 3 answers each at temperature 1" in pipeline.store.read(made, "table.txt").decode()


def one_judge(folder: Path) -> dict[str, str]:
    (folder / "letters.py").write_text(
        "def letters(prompts, completions, **columns):\n    return [len(c) for c in completions]\n"
    )
    return {"letters": f"{folder}/letters.py:letters"}


def test_a_note_says_how_prompts_were_answered_where_any_were(pipeline: Pipeline, tmp_path: Path) -> None:
    asked = config(pipeline, tmp_path)
    more = ["3 of 8 prompts of texts were trained on by mine/sft"]
    assert evaluation.written.note(0, asked, False, more) == f"{more[0]}." and not evaluation.written.note(
        0, asked, True, []
    )
    said = f"4 prompts, {asked.n} answer{'s' * (asked.n > 1)} each at temperature 1"
    assert evaluation.written.note(4, asked, True, []) == f"{said}; 95 % intervals over prompts."
    assert evaluation.written.note(4, asked, False, more) == f"{said}. {more[0]}."


def test_the_base_is_measured_anyway(pipeline: Pipeline, tmp_path: Path) -> None:
    """Who names it is told so, on the command line and in a recipe. Negative control: another name."""
    anyway = "the base of what is compared is measured anyway (include_base). Leave it out."
    with pytest.raises(InputError) as error:
        evaluate.run(config(pipeline, tmp_path, compare=["base", "tiny/sft"]), pipeline.store)
    assert str(error.value) == f"compare: base is no artifact; {anyway}"
    path = tmp_path / "r.yaml"
    for name, said in {
        "base": f": base is no stage; {anyway}",
        "sfft": ": sfft is not an earlier stage of this",
    }.items():
        stages = f"sft: {{data: d.jsonl}}, evaluate: {{compare: [{name}, sft], texts: d.jsonl}}"
        path.write_text(f"base: b\nstages: {{{stages}}}")
        with pytest.raises(InputError) as error:
            pipelines.load(path)
        assert f"stages.evaluate.compare{said}" in str(error.value)


def test_files_of_a_mixture_are_told_apart_in_a_report(pipeline: Pipeline, tmp_path: Path) -> None:
    """By the digests of their content, with what is set of each; a setting that has to be set has no default. Truth:
    sha256 of the files."""
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        write_rows(file, [{"prompt": f"{file.stem} {i}?", "completion": "Yes."} for i in range(4)])
    mixture = [{"file": str(files[0]), "limit": 3}, {"file": str(files[1])}]
    few: dict[str, Any] = {"max_steps": 1, "precision": "fp32", "threads": 1, "eval_fraction": 0.0}
    asked = sft.Config.model_validate({"parent": "tiny/sft", "data": mixture, **few})
    made = sft.run(asked, pipeline.store)
    (data,) = [held for held in evaluation.written.settings_of(pipeline.store, made) if held.name == "data"]
    one, two = (sha256(file.read_bytes()).hexdigest()[:12] for file in files)
    assert (data.value, data.default) == (f"{one} {{limit: 3}}, {two}", "none")


def test_what_it_is_compared_against(pipeline: Pipeline, tmp_path: Path) -> None:
    """A name as it was given, its end, or the bare base; KL and win rates are from there."""
    few: dict[str, object] = {"reward": None, "pairs": None, "texts": None}
    full, end, base = (
        evaluate.run(config(pipeline, tmp_path, against=against, **few), pipeline.store).metrics
        for against in ("tiny/dpo", "dpo", "base")
    )
    assert full == end and full["dpo/kl"] == 0.0 and "sft/win_rate_vs_dpo" in full
    assert (
        base["base/kl"] == 0.0 != base["sft/kl"]
        and "sft/win_rate_vs_base" in base
        and "base/win_rate_vs_base" not in base
    )
    names = ["tiny/sft", "tiny/dpo"]
    one, other = (
        evaluate.run(config(pipeline, tmp_path, compare=order, **few), pipeline.store) for order in (names, names[::-1])
    )
    assert one.config["against"] == "sft" and other.metrics == full  # of the first, also where the names are the same
    with pytest.raises(InputError, match=r"^against: 'base' is not among what is compared \(sft, dpo\)\.$"):
        evaluate.run(config(pipeline, tmp_path, against="base", include_base=False), pipeline.store)


def test_kl_is_at_the_temperature_of_the_samples(pipeline: Pipeline, tmp_path: Path) -> None:
    """By transformers' logits over the very samples, divided by the temperature. Negative control: as they are. At 0
    there is none."""
    from align.stage import on_base, reading
    from align.stage.question import prepare
    from align.stage.workbench import Workbench

    few: dict[str, object] = {"reward": None, "pairs": None, "texts": None, "temperature": 0.5, "n": 2}
    asked = config(pipeline, tmp_path, **few)
    bench = Workbench(prepare(evaluate.STAGE, asked, pipeline.store))
    renderer, roles = bench.load_renderer(), bench.load_base()
    for role in ("sft", "dpo"):
        on_base.add_role(bench, roles, role, pipeline.store.folder(pipeline.made[role]))
    models.process.set_up_process(1, evaluation.comparison.own_seed(asked.seed, "dpo"))
    prompts = reading.read(bench, "data")
    answers = evaluate.sample(roles, "dpo", renderer, renderer.prompts(prompts, 8, bench.context)[1], asked, 2)

    def kl(temperature: float) -> float:
        gaps = []
        for a in (a for several in answers for a in several):
            ids, sums = torch.tensor([[*a["prompt_ids"], *a["ids"]]]), []
            for role in ("dpo", "sft"):
                with roles.use(role), torch.no_grad(), native_attention(roles.base):
                    logits = roles.base(input_ids=ids).logits[0, len(a["prompt_ids"]) - 1 : -1] / temperature
                sums.append(torch.log_softmax(logits, -1).gather(1, ids[0, len(a["prompt_ids"]) :, None]).sum())
            gaps.append(float(sums[0] - sums[1]))
        return fmean(gaps)

    found = evaluate.run(asked, pipeline.store).metrics["dpo/kl"]
    assert found == pytest.approx(kl(0.5), rel=1e-3) and abs(found - kl(1.0)) > 0.1 * abs(found)
    greedy = evaluate.run(config(pipeline, tmp_path, **few | {"temperature": 0.0, "n": None}), pipeline.store).metrics
    assert "dpo/length" in greedy and not any(key.endswith("/kl") for key in greedy)


def test_settings_without_effect_are_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    for changes, message in (
        ({"temperature": 0.0, "n": 2}, "n has no effect: temperature is 0, so all answers to a prompt are the same."),
        ({"judges": {}}, "baselines has no effect: there is no judge to score them."),
        (
            {"data": None, "judges": {}, "baselines": [], "against": "sft"},
            "against has no effect: there are no prompts to answer.",
        ),
    ):
        with pytest.raises(InputError) as error:
            evaluate.run(config(pipeline, tmp_path, **changes), pipeline.store)
        assert message in str(error.value)
