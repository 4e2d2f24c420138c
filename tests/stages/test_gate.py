"""The gate before RL, the guard that stops a run, and the prompts that are watched: in real runs of the tiny recipe."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import align
from align import ppo
from align.ground.errors import AlignError, InputError
from align.ground.terminal import say
from align.measures.statistics import pair_statistics, prefers_longer
from align.report.text import show_text
from align.reward import undecided
from align.rl.reward_gate import check_rewards
from align.stage.ahead.dry_run import plan
from align.store import Artifact
from tests.conftest import ROOT, Pipeline, run_align
from tests.stages.helpers import committed, forget, history, run, settings

# ---- the gate --------------------------------------------------------------------------------------------------------


def measured(accuracy: float, rule: float, pairs: int = 200, **more: Any) -> dict[str, Artifact]:
    """A reward artifact that says so of itself, with an interval of 5 points to each side."""
    found = {
        "eval/accuracy": accuracy,
        "eval/accuracy_ci95": [accuracy - 0.05, accuracy + 0.05],
        "eval/length_baseline_accuracy": rule,
        "eval/pairs": pairs,
    }
    return {"reward": artifact(found | more)}


def artifact(metrics: dict[str, Any]) -> Artifact:
    return Artifact("0" * 64, "reward", "reward", 2, {}, {}, None, None, {}, metrics, {})


def test_what_the_gate_says() -> None:
    """Refused where the whole interval is below the rule; a note where the rule lies inside it; silent above it."""
    assert check_rewards(measured(0.80, 0.74), {}, False) == []
    for accuracy in (0.80, 0.76, 0.72):
        (note,) = check_rewards(measured(accuracy, 0.76), {}, False)
        assert (
            f"orders {accuracy:.1%} of its 200 held-out pairs rightly (95 %: {accuracy - 0.05:.1%} to" in note
            and "no better" in note
        )
    with pytest.raises(
        InputError, match=r"nothing but length orders 76\.0%\. Training on it would teach length"
    ) as error:
        check_rewards(measured(0.70, 0.76), {"reward": 2.0}, False)
    assert "Set trust_reward: true" in str(error.value)
    (note,) = check_rewards(measured(0.70, 0.76), {}, True)
    assert note.endswith("It is trained on all the same, since trust_reward is set.")
    assert check_rewards(measured(0.70, 0.76), {"reward": 0.0}, False) == []  # it is not trained on
    (note,) = check_rewards({"reward": artifact({})}, {}, False)
    assert "was never measured" in note


def test_few_pairs_decide_nothing() -> None:
    """Clopper-Pearson for 0 of 1: 0 to 0.975. The control is 0.8 of 200, whose interval lies above one half."""
    few = {"eval/accuracy": 0.0, "eval/accuracy_ci95": [0.0, 0.975], "eval/pairs": 1}
    assert undecided(few).startswith("accuracy 0.0% on 1 held-out pair (95 %: 0.0% to 97.5%) is not told from guessing")
    assert undecided({"eval/accuracy": 0.8, "eval/accuracy_ci95": [0.74, 0.85], "eval/pairs": 200}) == ""
    assert undecided({}) == ""


def test_of_very_few_pairs_the_gate_refuses_none() -> None:
    """One of two right, where length has both. Negative control: five of ten, where length has all."""
    (note,) = check_rewards(measured(0.5, 1.0, 2, **{"eval/accuracy_ci95": [0.095, 0.905]}), {}, False)
    assert "it may be no better" in note
    with pytest.raises(InputError, match="would teach length"):
        check_rewards(measured(0.5, 1.0, 10, **{"eval/accuracy_ci95": [0.24, 0.76]}), {}, False)


@pytest.mark.parametrize("pairs", [10, 30, 100])
def test_chance_refuses_no_good_reward_model(pairs: int) -> None:
    """One that is right in 65 %, where length says nothing, with few held-out pairs; one right in half, where length is
    right in 90 %, is refused once there are enough. Negative control: a rule chosen on the very pairs that are
    measured, and a limit of one number."""
    draw, refused, before, useless = np.random.default_rng(pairs), 0, 0, 0
    for _ in range(300):
        training, lengths = draw.integers(5, 30, 200), draw.integers(5, 30, 2 * pairs)
        for share, longer, counts in ((0.65, lengths, True), (0.5, np.tile([2, 1], pairs), False)):
            scores = np.stack([np.where(draw.random(pairs) < share, 1.0, -1.0), np.zeros(pairs)], 1).ravel()
            found = pair_statistics(scores, longer, range(pairs), prefers_longer(training) if counts else True)
            rule = found["eval/length_baseline_accuracy"]
            if counts:
                before += found["eval/accuracy"] <= max(rule, 1 - rule)
            try:
                check_rewards(
                    {"reward": artifact(found | {"eval/length_baseline_accuracy": rule if counts else 0.9})}, {}, False
                )
            except InputError:
                refused, useless = refused + counts, useless + (not counts)
    assert refused / 300 < 0.08 and (pairs > 30 or before > 4 * refused) and (pairs < 30 or useless / 300 > 0.9)


def useless(pipeline: Pipeline) -> Artifact:
    """The recipe's reward model, which says of itself that it is right in half of many pairs, and length in nine of
    ten."""
    own, store = pipeline.store.resolve("tiny/reward"), pipeline.store
    metrics = own.metrics | measured(0.5, 0.9)["reward"].metrics
    same: dict[str, Any] = {
        name: getattr(own, name) for name in ("kind", "stage", "version", "config", "parents", "base", "text", "data")
    }
    made = store.put(store.folder(own), **same, metrics=metrics)
    store.tag("tiny/useless", made)
    return made


def test_a_useless_reward_model_is_refused_without_torch(pipeline: Pipeline) -> None:
    reward = useless(pipeline)
    program = f"""
import sys
from align import grpo, ppo
from align.ground.errors import InputError
from align.store import Store
for stage in (ppo, grpo):
    try:
        data = {str(pipeline.recipe.parent / "prompts.jsonl")!r}
        stage.run(stage.Config(parent="tiny/sft", reward="tiny/useless", data=data),
                  Store({str(pipeline.store.path)!r}))
    except InputError as error:
        print(error)
print(sorted({{"torch", "transformers", "peft"}} & set(sys.modules)))
"""
    before = committed(pipeline.store)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    first, second, heavy = done.stdout.splitlines()
    assert first == second and first.startswith(f"reward: reward ({reward.short}) orders ") and heavy == "[]"
    assert committed(pipeline.store) == before


def test_the_gate_in_commands(pipeline: Pipeline) -> None:
    """A dry run refuses too, of a stage and of a recipe; what is done is skipped, whatever is trusted now."""
    config = settings(pipeline, "ppo", trust_reward=False)
    assert str(plan(ppo.STAGE, config, pipeline.store)).startswith("tiny/ppo: skip")
    assert ppo.run(config, pipeline.store).digest == pipeline.made["ppo"].digest
    useless(pipeline)
    other = config.model_copy(update={"reward": "tiny/useless"})
    with pytest.raises(InputError, match="Set trust_reward: true"):
        plan(ppo.STAGE, other, pipeline.store)
    assert "since trust_reward is set" in str(
        plan(ppo.STAGE, other.model_copy(update={"trust_reward": True}), pipeline.store)
    )
    words = [
        "run",
        pipeline.recipe,
        "--dry-run",
        "--store",
        pipeline.store.path,
        "--set",
        "stages.ppo.reward=tiny/useless",
    ]
    assert "since trust_reward" not in run_align(*words).stderr
    assert "Set trust_reward: true" in run_align(*words, "--set", "stages.ppo.trust_reward=false", code=2).stderr


# ---- the guard -------------------------------------------------------------------------------------------------------


def test_a_run_that_the_guard_stops_and_one_that_goes_on(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any KL at all is a sign here, and the second rollout has some. Nothing is committed, the checkpoint before it is
    kept, and without the stop the run goes on from it to what it would have been."""
    far: dict[str, Any] = {"max_steps": 6, "checkpoint_steps": 2}
    limits = {"kl": 1e-5, "negative_kl": 1e-5}
    before = committed(pipeline.store)
    with pytest.raises(AlignError) as error:
        run(pipeline, "ppo", guard={**limits, "stop": ["kl", "negative_kl"]}, **far)
    assert error.value.exit_code == 1 and "was stopped by its guard in rollout 2: " in str(error.value)
    assert committed(pipeline.store) == before
    (kept,) = pipeline.store.path.glob("runs/*/checkpoints/checkpoint-*")
    assert kept.name == "checkpoint-2"
    capsys.readouterr()
    resumed = run(pipeline, "ppo", guard=limits, **far)
    assert "rollout 1: warning" not in capsys.readouterr().err  # the first rollout was not sampled again
    forget(pipeline.store, resumed)
    assert run(pipeline, "ppo", guard=limits, **far).digest == resumed.digest
    said = capsys.readouterr().err
    warnings = [json.loads(line) for line in pipeline.store.read(resumed, "guard.jsonl").splitlines()]
    assert warnings[0]["sign"] == "eos_rate"  # hardly an answer of the tiny model ends
    assert {w["sign"] for w in warnings} & {"kl", "negative_kl"}
    assert resumed.metrics["guard/warnings"] == len(warnings) == said.count(": warning: ")
    shown = show_text(pipeline.store, resumed)
    assert f"\nguard    eos_rate, rollout 1: {warnings[0]['message']}\n" in shown
    assert history(resumed, pipeline.store)[-1]["guard/warnings"] == len(warnings)


def test_thresholds_are_asked_for_and_stops_are_not(pipeline: Pipeline) -> None:
    """Another threshold gives other warnings, so it is another key; what stops gives nothing, so it is not."""
    from align.stage.question import prepare

    def key(**guard: Any) -> str:
        return prepare(ppo.STAGE, settings(pipeline, "ppo", guard=guard), pipeline.store).key

    assert key() == key(stop=["kl"]) != key(kl=30.0)


def test_a_judge_of_weight_0_watches(pipeline: Pipeline) -> None:
    """It is logged and trains nothing: the adapter is the one of a run without it."""
    judge = pipeline.recipe.with_name("judge.py")
    judge.write_text("def length(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    watched = run(pipeline, "ppo", judges={"length": f"{judge}:length"}, weights={"length": 0.0}, name="watched")
    trained = run(pipeline, "ppo", judges={"length": f"{judge}:length"}, weights={"length": 0.5}, name="trained")
    assert weights_of(watched) == weights_of(pipeline.made["ppo"]) != weights_of(trained)
    rows = history(watched, pipeline.store)
    assert all(
        r["reward/mean"] == pytest.approx(r["reward/reward"]) and r["reward/length"] > 1 < r["reward/length/std"]
        for r in rows
    )
    with pytest.raises(InputError, match="weights: reward have weight 0, so there is nothing to train on"):
        run(pipeline, "ppo", weights={"reward": 0.0})


# ---- watched prompts -------------------------------------------------------------------------------------------------


def weights_of(artifact: Artifact) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in artifact.files.items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("stage", ["ppo", pytest.param("rloo", marks=pytest.mark.slow)])
def test_watching_changes_no_weight(stage: str, pipeline: Pipeline) -> None:
    plain = run(pipeline, stage, watch_prompts=0, max_steps=4, name="plain")
    watched = run(pipeline, stage, watch_prompts=3, max_steps=4, name="watched")
    other = run(pipeline, stage, watch_prompts=3, max_steps=4, seed=8, name="other")
    assert weights_of(plain) == weights_of(watched) != weights_of(other)  # the last is the negative control
    assert "watched.jsonl" not in plain.files and watched.files["history.jsonl"] == plain.files["history.jsonl"]


def test_watched_answers_are_those_of_the_policy(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """The first are the parent's likeliest answers and the last the artifact's own, by `align generate --temperature
    0`."""
    made = run(pipeline, "ppo", watch_prompts=3, max_steps=4, learning_rate=0.05, name="watched")
    rows = [json.loads(line) for line in pipeline.store.read(made, "watched.jsonl").splitlines()]
    assert len(rows) == 3 and [a["after"] for a in rows[0]["answers"]] == [0, 1, 2]
    greedy: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 8, "precision": "fp32", "threads": 1}
    data = pipeline.recipe.parent / "prompts.jsonl"
    for name, at in (("tiny/sft", 0), ("watched", -1)):
        answers = align.generate.run(align.generate.Config(parent=name, data=data, **greedy), pipeline.store)
        by_prompt = {row["prompt"]: row["completion"] for row in answers}  # text, as it was given
        asked = [row["prompt"][0]["content"] for row in rows]
        assert [row["answers"][at]["text"] for row in rows] == [by_prompt[prompt] for prompt in asked]
    # negative control: they do change
    assert any(row["answers"][0]["text"] != row["answers"][-1]["text"] for row in rows)
    said = [
        line
        for line in capsys.readouterr().err.splitlines()
        if ": after rollout " in line or ": at the start: " in line
    ]
    assert [line.split(": ")[1] for line in said] == ["at the start", "after rollout 1", "after rollout 2"]


def test_a_line_of_progress_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from align.guard.answers import SHOWN, short

    assert short("a\n b\x1b[2J") == "a b[2J" and len(short("x" * 500)) == SHOWN
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    say("over the redrawn line")
    assert capsys.readouterr().err == "\r\x1b[Kover the redrawn line\n"
