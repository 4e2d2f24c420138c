"""What the RL stages share: rewards from models and judges, groups, what is refused, and the shape of what comes
out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from align import grpo, judges, ppo, rl
from align.ground.errors import AlignError, InputError
from align.recipe import parse_flags
from align.rl import setup
from align.rl.collect import Rollouts
from align.stage import catalogue
from align.stage.question import prepare
from align.store import Artifact
from tests.conftest import Pipeline, write_rows
from tests.stages.helpers import GROUPS, history, run, settings

JUDGE = """\
def letters(prompts, completions, **columns):
    assert all(isinstance(text, str) for text in [*prompts, *completions])
    return [float(len(c)) for c in completions]

def same(prompts, completions, **columns):
    return [1.0] * len(completions)

def by_prompt(prompts, completions, answer, **columns):
    return [float(a) for a in answer]

def some(completions, **columns):
    return [float(len(c)) if i % 4 else None for i, c in enumerate(completions)]

def others(completions, completion_ids, **columns):
    return [float(len(ids)) if i == 0 else None for i, ids in enumerate(completion_ids)]

def silent(completions, **columns):
    return [None] * len(completions)

def asks(completions, trainer_state, **columns):
    raise AssertionError
"""


@pytest.fixture
def judge_file(pipeline: Pipeline) -> str:
    path = pipeline.recipe.with_name("judge.py")
    path.write_text(JUDGE)
    return str(path)


@pytest.mark.parametrize("stage", ["ppo", *GROUPS])
def test_judges_alone_will_do(stage: str, pipeline: Pipeline, judge_file: str) -> None:
    """No reward artifact: PPO's value role starts from the parent with a head of zeros, the others have no value
    role."""
    made = run(pipeline, stage, reward=None, judges={"letters": f"{judge_file}:letters"}, max_steps=2)
    assert made.parents.keys() == {"parent"}
    assert made.metrics["reward/first"] > 1 and "reward/letters" not in made.metrics
    assert ("value/head.safetensors" in made.files) == (stage == "ppo")
    if stage == "ppo":
        assert history(made, pipeline.store)[0]["value/explained_variance"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("stage", ["ppo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_rewards_add_up_by_weight(
    stage: str, pipeline: Pipeline, judge_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models and a judge: each is logged by its name, and the sum by their weights is what advantages are worked
    out from."""
    other = run(pipeline, "reward", name="tiny/other", head_learning_rate=0.5)
    seen: list[np.ndarray] = []
    total = rl.rewards.total

    def noting(rewards: Any, by_name: Any, deviations: Any) -> Any:
        assert [r.name for r in rewards] == ["reward", "other", "letters"]
        seen.append(total(rewards, by_name, deviations))
        return seen[-1]

    monkeypatch.setattr("align.rl.collect.total", noting)
    weights = {"reward": 2.0, "letters": -0.25}
    both: dict[str, Any] = {
        "reward": ["tiny/reward", "tiny/other"],
        "judges": {"letters": f"{judge_file}:letters"},
        "weights": weights,
    }
    made = run(pipeline, stage, **both)
    assert (
        made.parents.keys() == {"parent", "reward/reward", "reward/other"}
        and made.parents["reward/other"] == other.digest
    )
    first = history(made, pipeline.store)[0]
    by_hand = 2.0 * first["reward/reward"] + first["reward/other"] - 0.25 * first["reward/letters"]
    assert first["reward/mean"] == pytest.approx(by_hand, rel=1e-6) == pytest.approx(seen[0].mean(), rel=1e-6)
    assert abs(first["reward/other"] - first["reward/reward"]) > 1e-3  # negative control: they are two models
    assert made.metrics["reward/letters"] == history(made, pipeline.store)[-1]["reward/letters"]


def test_a_reward_is_not_called_as_their_sum_is() -> None:
    """Negative control: any other name."""
    given = {"data": "x", "base": "y"}
    assert ppo.Config(**given, judges={"means": "j.py:f"}).check_parents({}) == []
    with pytest.raises(
        InputError, match=r"^judges: mean is what a figure of the sum of rewards is called; call it something else\.$"
    ):
        ppo.Config(**given, judges={"mean": "j.py:f"}).check_parents({})


def test_a_list_of_one_is_that_one(pipeline: Pipeline) -> None:
    """The command line gives a list; the key of what is asked is the same."""
    assert ppo.Config(data="x", base="y", reward=["r"]) == ppo.Config(data="x", base="y", reward="r")
    one = prepare(ppo.STAGE, settings(pipeline, "ppo"), pipeline.store)
    listed = prepare(ppo.STAGE, settings(pipeline, "ppo", reward=["tiny/reward"]), pipeline.store)
    assert one.key == listed.key and setup.reward_artifacts(one).keys() == {"reward"}


def test_a_judge_counts_by_its_content(pipeline: Pipeline, judge_file: str) -> None:
    """Another place is the same key; another function, weight or text is another."""
    config = settings(pipeline, "grpo", judges={"letters": f"{judge_file}:letters"})
    keys = [prepare(grpo.STAGE, config, pipeline.store).key]
    moved = Path(judge_file).with_name("moved.py")
    moved.write_text(JUDGE)
    assert (
        prepare(grpo.STAGE, config.model_copy(update={"judges": {"letters": f"{moved}:letters"}}), pipeline.store).key
        == keys[0]
    )
    for update in ({"judges": {"letters": f"{moved}:same"}}, {"weights": {"letters": 2.0}}):
        keys.append(prepare(grpo.STAGE, config.model_copy(update=update), pipeline.store).key)
    Path(judge_file).write_text(JUDGE + "# changed\n")
    keys.append(prepare(grpo.STAGE, config, pipeline.store).key)
    assert len(set(keys)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"lettres": 2.0}}, "weights: lettres is no reward of this stage; it has reward, letters."),
        (
            {"judges": {"reward": "{judges}:letters"}},
            "judges: reward is what a reward artifact is called; call the judge something else.",
        ),
        (
            {"judges": {"letters": "{judges}:letter"}},
            "has no function 'letter'; it has letters, same, by_prompt, some, others, silent, asks.",
        ),
        ({"judges": {"letters": "{judges}:asks"}}, "needs 'trainer_state', which exists only inside TRL's trainer"),
    ],
)
def test_what_is_refused_before_a_base_is_loaded(
    changes: Any, message: str, pipeline: Pipeline, judge_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.stage.workbench.Workbench.load_base", lambda *args: pytest.fail("the base was loaded"))
    changes = {
        k: {n: v.format(judges=judge_file) if isinstance(v, str) else v for n, v in c.items()}
        for k, c in changes.items()
    }
    with pytest.raises(InputError) as error:
        run(pipeline, "grpo", **{"judges": {"letters": f"{judge_file}:letters"}, **changes})
    assert message in str(error.value)


def test_what_settings_refuse() -> None:
    plain: dict[str, Any] = {"data": "x", "base": "y"}
    for changes, message in (
        (
            {},
            "none of reward, judges and judge_prompt is set; give a reward artifact, Python functions (judges.NAME), "
            "what a model is asked, or several of them.",
        ),
        ({"reward": "r", "rollout_size": 48}, "rollout_size (48) must be a multiple of batch_size (32)."),
        (
            {"reward": "r", "group_size": 5},
            "batch_size (32), which counts samples, must be a multiple of group_size (5).",
        ),
        (
            {"reward": "r", "kl_target": 6.0, "kl_coef": 0.0},
            "kl_target is set, but kl_coef is 0 and the price of KL is multiplied",
        ),
        ({"reward": "r", "kl_target": 6.0, "kl_horizon": 100}, "kl_horizon (100) must be at least rollout_size (128)"),
        ({"reward": "r", "loss": "gmpo", "normalise": "token"}, "loss is gmpo, so an answer is one action, but"),
        (
            {"reward": "r", "ratio": "sequence", "normalise": "constant"},
            "ratio is sequence, so an answer is one action",
        ),
        ({"reward": "r", "ratio_max": 1.2}, "ratio_max (1.2) is not above 1 + clip (1.2)"),
        ({"reward": "r", "ratio_max": 1.5, "clip_high": 0.6}, "ratio_max (1.5) is not above 1 + clip_high (1.6)"),
        (
            {"reward": "r", "loss": "gmpo", "top_entropy_quantile": 0.2},
            "loss is gmpo, which takes an answer as a whole",
        ),
        ({"reward": "r", "loss": "vespo", "importance": "token_mask"}, "importance would weigh it once more"),
        ({"reward": "r", "loss": "gmpo", "importance": "token_mask"}, "by which tokens weigh apart, but loss is gmpo"),
    ):
        with pytest.raises(ValidationError) as error:
            grpo.Config(**plain, **changes)
        assert message in str(error.value)
    assert grpo.Config(**plain, judges={"a": "b.py:c"}).group_size == 8
    for fine in ({"loss": "gmpo", "normalise": "sum"}, {"ratio": "sequence", "normalise": "sum"}, {"ratio_max": 1.3}):
        grpo.Config(**plain, reward="r", **fine)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "cispo", "clip_high": 1e-3, "normalise": "token"},  # within both clips its gradient is that of clip
        {"loss": "sapo", "top_entropy_quantile": 0.2},
        {"loss": "vespo", "normalise": "token"},
        {"loss": "gmpo", "clip": 0.4},
        {"ratio": "sequence", "normalise": "sum", "kl_by_ratio": True},
    ],
    ids=["cispo", "sapo", "vespo", "gmpo", "luspo"],
)
def test_every_loss_trains(changes: dict[str, Any], pipeline: Pipeline, judge_file: str) -> None:
    """Three steps on two rollouts; what comes out is not what GRPO's own loss gives (negative control), and
    `clip_fraction` is of losses that clip."""
    given: dict[str, Any] = {"reward": None, "judges": {"letters": f"{judge_file}:letters"}, "max_steps": 3}
    made, plain = (run(pipeline, "grpo", **given, **more) for more in (changes, {}))
    last = history(made, pipeline.store)[-1]
    assert last["step"] == 3 and all(np.isfinite(value) for value in last.values())
    assert ("clip_fraction" in last) == (changes.get("loss") not in ("sapo", "vespo"))
    assert weights_of(made, pipeline) != weights_of(plain, pipeline)


def weights_of(artifact: Artifact, pipeline: Pipeline) -> bytes:
    (name,) = (name for name in artifact.files if name.endswith("adapter_model.safetensors"))
    return pipeline.store.read(artifact, name)


def test_weights_on_the_command_line() -> None:
    words = [
        "--base",
        "b",
        "--data",
        "d",
        "--reward",
        "a",
        "--reward",
        "c",
        "--judges.j",
        "x.py:f",
        "--weights.j",
        "0.5",
    ]
    config = parse_flags(grpo.Config, words, prog="align grpo").config
    assert config.reward == ["a", "c"] and config.judges == {"j": "x.py:f"} and config.weights == {"j": 0.5}
    with pytest.raises(InputError, match=r"--weights\.j|--weights"):
        parse_flags(grpo.Config, [*words[:-1], "half"], prog="align grpo")


def test_groups_without_variance_are_counted_and_dropped(
    pipeline: Pipeline, judge_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge to whom all answers are the same gives no group any variance: nothing moves, which is an error after the
    last step. Dropped groups are in no step, but a step is never empty."""
    taken: list[int] = []
    step = rl.collect.make_step

    def counting(examples: Any, budget: int) -> Any:
        taken.append(len(examples))
        return step(examples, budget)

    monkeypatch.setattr("align.rl.collect.make_step", counting)
    flat: dict[str, Any] = {
        "reward": None,
        "judges": {"same": f"{judge_file}:same"},
        "kl_coef": 0.0,
        "missing_eos_penalty": 0.0,
    }
    with pytest.raises(AlignError, match=r"^tiny/grpo: every gradient of the run was zero, so nothing was trained"):
        run(pipeline, "grpo", **flat)
    assert taken == [2, 2]

    def half(self: Any) -> np.ndarray:
        return np.arange(len(self.scores) // self.group_size) % 2 == 0

    monkeypatch.setattr(rl.collect.Rollout, "without_variance", property(half))
    taken.clear()
    run(pipeline, "grpo", drop_without_variance=True)
    run(pipeline, "grpo")  # negative control: without the setting they stay
    assert taken == [1, 1, 2, 2]
    taken.clear()
    monkeypatch.setattr(rl.collect.Rollout, "without_variance", property(lambda self: np.ones(2, dtype=bool)))
    run(pipeline, "grpo", drop_without_variance=True, seed=4)
    assert taken == [2, 2]  # never an empty step


@pytest.mark.parametrize("stage", [pytest.param("ppo", marks=pytest.mark.slow), "grpo"])
def test_settings_of_the_rollout_reach_it(stage: str, pipeline: Pipeline, judge_file: str) -> None:
    """The gap to the sampler and the score are in the manifest; length costs what it says; stop texts end answers and
    are not judged."""
    given: dict[str, Any] = {"reward": None, "judges": {"letters": f"{judge_file}:letters"}, "missing_eos_penalty": 0.0}
    plain = run(pipeline, stage, **given)
    assert 0 <= plain.metrics["sampler_gap/mean"] <= plain.metrics["sampler_gap/max"] < 1e-3
    assert plain.metrics["score/mean"] == pytest.approx(plain.metrics["reward/mean"], rel=1e-6)
    dear = run(pipeline, stage, **given, length_penalty=0.5)
    assert dear.metrics["score/mean"] == pytest.approx(
        dear.metrics["reward/mean"] - 0.5 * dear.metrics["length"], rel=1e-6
    )
    letters = ["a", "e", "i", "o", "u", "t", "s"]
    stopped = run(pipeline, stage, **given, stop=letters)
    assert (
        stopped.metrics["eos_rate"] > plain.metrics["eos_rate"] and stopped.metrics["length"] < plain.metrics["length"]
    )
    assert stopped.metrics["reward/first"] < plain.metrics["reward/first"]


def test_stop_texts_on_the_command_line_are_taken_as_they_are() -> None:
    words = ["--base", "b", "--data", "d", "--reward", "a", "--stop", "\n", "--stop", "Human, or so: "]
    assert parse_flags(grpo.Config, words, prog="align grpo").config.stop == ["\n", "Human, or so: "]
    with pytest.raises(InputError, match="stop"):
        parse_flags(grpo.Config, [*words[:-1], ""], prog="align grpo")


def test_samples_of_a_prompt_share_it(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group is one example: its prompt stands once in the packed row; batch_size counts samples."""
    made: list[Any] = []
    collect = Rollouts.collect

    def noting(self: Rollouts, index: int) -> Any:
        made.append(collect(self, index))
        return made[-1]

    monkeypatch.setattr(Rollouts, "collect", noting)
    run(pipeline, "rloo")
    ((examples, dropped),) = made
    assert len(examples) == 2 and not dropped.any()
    for e in examples:
        assert len(e.sequences) == 4 and len({tuple(s[: e.shared]) for s in e.sequences}) == 1
        assert len({tuple(s) for s in e.sequences}) > 1
        assert e.tokens == e.prefix + sum(len(s) - e.prefix for s in e.sequences) < sum(map(len, e.sequences))


def test_the_judge_gets_the_prompts_columns_for_each_sample(
    pipeline: Pipeline, judge_file: str, tmp_path: Path
) -> None:
    from tests.conftest import write_rows

    prompts = [{"prompt": f"Which colour is cup {i}?", "answer": i} for i in range(8)]
    data = write_rows(tmp_path / "prompts.jsonl", prompts)
    made = run(
        pipeline,
        "rloo",
        data=data,
        reward=None,
        judges={"at": f"{judge_file}:by_prompt"},
        rollout_size=32,
        max_steps=2,
        batch_size=32,
    )
    assert made.metrics["reward/first"] == pytest.approx(3.5)  # 8 prompts x 4 samples, each with its prompt's number
    assert judges.digest(f"{judge_file}:by_prompt") == made.config["judges"]["at"]


def test_answers_without_a_score(pipeline: Pipeline, judge_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted and said; the reward's mean is over those that have one, whoever scored them (`others` scores the first
    answer of all)."""
    alone: dict[str, Any] = {"reward": None, "max_steps": 2, "judges": {"some": f"{judge_file}:some"}}
    first = history(made := run(pipeline, "grpo", **alone), pipeline.store)[0]
    assert first["unscored"] == 0.25 and np.isfinite(list(first.values())).all() and made.metrics["reward/last"] > 1
    assert "2 of 8 answers got no score from any reward (None), the first to " in capsys.readouterr().err
    both = history(
        run(pipeline, "grpo", **alone | {"judges": {"some": f"{judge_file}:some", "others": f"{judge_file}:others"}}),
        pipeline.store,
    )[0]
    assert both["unscored"] == 0.125 and both["reward/some"] == first["reward/mean"]
    assert (both["reward/some/unscored"], both["reward/others/unscored"]) == (0.25, 0.875)
    assert both["reward/mean"] == pytest.approx((6 * both["reward/some"] + both["reward/others"]) / 7)
    with pytest.raises(
        AlignError,
        match=r"^judge: silent gave none of \d+ answers of this rollout a score: all are None\. Look at the judge\.$",
    ):
        run(pipeline, "grpo", **alone | {"judges": {"silent": f"{judge_file}:silent"}})


@pytest.mark.filterwarnings("error")  # such as the mean of nothing
@pytest.mark.parametrize("stage", ["ppo", "reinforce_pp"])
def test_no_loss_is_taken_over_answers_without_a_score(stage: str, pipeline: Pipeline, judge_file: str) -> None:
    """Nor is a number lost by one that is only watched and says nothing. Negative control: two judges that score all
    answers between them."""
    some: dict[str, Any] = {"reward": None, "judges": {"some": f"{judge_file}:some"}, "max_steps": 2}
    watched = {"silent": f"{judge_file}:silent", **some["judges"]}
    normalised = {"normalise_rewards": "rollout"} if stage == "ppo" else {}
    made = run(pipeline, stage, **some | normalised | {"judges": watched, "weights": {"silent": 0.0}})
    for row in history(made, pipeline.store):
        assert (
            row["unscored"] == 0.25 and row["reward/silent/unscored"] == 1.0 and np.isfinite(list(row.values())).all()
        )
    both = run(pipeline, stage, **some | {"judges": {**some["judges"], "same": f"{judge_file}:same"}})
    assert "unscored" not in history(both, pipeline.store)[0]
    with pytest.raises(AlignError, match=r"silent gave none of 8 answers of this rollout a score: all are None"):
        run(pipeline, stage, **some | {"judges": {"silent": f"{judge_file}:silent"}})


def test_every_stage_has_a_line_in_the_help() -> None:
    assert {"ppo", *GROUPS} <= catalogue.commands().keys()


def test_prompts_that_are_dropped(pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`truncate: drop` leaves long prompts out, counts them, and trains on the rest as if they had not been there."""
    short = [
        {"prompt": f"The {colour} ball is {colour}. Which colour is the ball?"} for colour in ("red", "blue", "green")
    ]
    rows = write_rows(tmp_path / "rows.jsonl", [*short[:1], {"prompt": "red " * 200}, *short[1:]])
    without = write_rows(tmp_path / "without.jsonl", short)
    found = [
        history(run(pipeline, "ppo", data=data, truncate="drop", name=data.stem), pipeline.store)
        for data in (rows, without)
    ]
    assert found[0] == found[1]
    assert "rows: 1 of 4 prompts dropped: no room to answer within max_length (96)" in capsys.readouterr().err
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "red " * 200}])
    with pytest.raises(InputError, match=r"^all 1 prompts were dropped: the first has "):
        run(pipeline, "ppo", data=long, truncate="drop")
