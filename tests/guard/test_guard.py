"""The guard's signs: a history made by hand that shows each, and one that just does not; warnings come once, go, and
survive a resume."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest

from align import ppo
from align.ground.errors import AlignError, InputError
from align.guard import rollout_limits
from align.guard import rollout_signs as guard
from align.guard.rl import RolloutGuard as Guard
from align.guard.rollout_limits import RolloutLimits as Limits
from align.guard.rollout_signs import SIGNS
from align.recipe import parse_flags

HEALTHY = {
    "reward/mean": 0.5,
    "kl": 3.0,
    "entropy": 0.5,
    "eos_rate": 1.0,
    "length": 10.0,
    "groups_without_variance": 0.2,
    "value/explained_variance": 0.3,
    "sampler_gap/max": 1e-4,
}


def history(n: int = 10, **last: float) -> list[dict[str, float]]:
    """A healthy run of `n` rollouts whose last one differs."""
    return [*(dict(HEALTHY) for _ in range(n - 1)), {**HEALTHY, **last}]


def warned(rows: list[dict[str, float]], monitors: tuple[str, ...] = (), groups: int = 128, **limits: Any) -> list[str]:
    """The signs that a guard warns of, in that order."""
    watch = Guard(Limits(**limits), "run", monitors, groups)
    for i, row in enumerate(rows):
        watch.rollout(i, {k: v for k, v in row.items() if not k.startswith("first/")}, None)
        if "first/ratio" in row:
            watch.first_step({"ratio": row["first/ratio"], "approx_kl": row["first/approx_kl"]})
    return [w["sign"] for w in watch.warnings]


@pytest.mark.parametrize(
    ("sign", "seen", "not_quite"),
    [
        ("kl", {"kl": 25.1}, {"kl": 24.9}),
        ("negative_kl", {"kl": -1.1}, {"kl": -0.9}),
        ("eos_rate", {"eos_rate": 0.69}, {"eos_rate": 0.71}),
        ("length", {"length": 20.1}, {"length": 19.9}),
        ("entropy", {"entropy": 0.049}, {"entropy": 0.051}),
        ("no_variance", {"groups_without_variance": 0.91}, {"groups_without_variance": 0.89}),
        ("sampler_gap", {"sampler_gap/max": 1.1}, {"sampler_gap/max": 0.9}),
        # k3 of a log ratio that is +-0.11 half of the time each is 0.11^2 / 2 and a little; the mean of the ratio is 1
        # all the same
        (
            "ratio",
            {"first/ratio": 1.0, "first/approx_kl": 0.11**2 / 2},
            {"first/ratio": 1.0, "first/approx_kl": 0.09**2 / 2},
        ),
        ("ratio", {"first/ratio": 0.89, "first/approx_kl": 0.0}, {"first/ratio": 0.91, "first/approx_kl": 0.0}),
    ],
)
def test_a_sign_of_one_rollout(sign: str, seen: dict[str, float], not_quite: dict[str, float]) -> None:
    assert warned(history(**seen)) == [sign]
    assert warned(history(**not_quite)) == []


def test_answers_without_a_score_are_the_cause() -> None:
    """Where most have none; negative control: where few have none, the prompts are."""

    def told(unscored: float) -> str:
        watch = Guard(Limits(), "run", (), 128)
        for row in history(groups_without_variance=1.0, unscored=unscored):
            watch.rollout(0, row, None)
        return str(watch.warnings[-1]["message"])

    assert "Likely cause: answers have no score" in told(0.875) and "88% of answers have no score" in told(0.875)
    assert "Likely cause: these prompts are too easy" in told(0.01)


def test_answers_that_never_ended_are_cut_and_those_that_no_longer_end_are_paid_for() -> None:
    """What the first rollout was, before anything was trained, tells the two apart; neither blames data of sft, whose
    answers all end."""

    def told(*rates: float) -> str:
        watch = Guard(Limits(), "run", (), 128)
        for i, rate in enumerate(rates):
            watch.rollout(i, {**HEALTHY, "eos_rate": rate}, None)
        return str(watch.warnings[-1]["message"])

    for rates in ((0.5,), (0.5, 0.4)):
        said = told(*rates)
        assert "Likely cause: max_new_tokens is too short" in said and "What to do: raise max_new_tokens" in said
    assert "Likely cause: the reward pays for going on" in told(0.9, 0.5) and "too short" not in told(0.9, 0.5)
    assert "SFT data" not in told(0.5) + told(0.9, 0.5)


def test_figures_that_a_stage_does_not_measure_are_no_sign() -> None:
    bare = {k: v for k, v in HEALTHY.items() if k in ("reward/mean", "kl", "entropy", "eos_rate", "length")}
    assert warned([bare] * 12) == []


def test_values_may_be_bad_at_the_start_and_now_and_then() -> None:
    """Five rollouts of warm-up, then five below 0 on end are needed; one above starts the count again."""
    name = "value/explained_variance"
    below, above = {**HEALTHY, name: -0.01}, {**HEALTHY, name: 0.01}
    assert warned([below] * 9) == []
    assert warned([below] * 10) == ["explained_variance"]
    assert warned([above] * 5 + [below] * 4 + [above] + [below] * 4) == []
    assert warned([above] * 5 + [below] * 4 + [above] + [below] * 5) == ["explained_variance"]
    assert warned([below] * 4, window=2) == ["explained_variance"]


def hacked(fall: float, rise: float = 0.5, std: float = 0.4) -> list[dict[str, float]]:
    """Five rollouts, then five in which the trained reward is higher by `rise` and the monitor lower by `fall`."""
    before = {**HEALTHY, "reward/gold": 0.8, "reward/gold/std": std}
    after = {**before, "reward/mean": 0.5 + rise, "reward/gold": 0.8 - fall}
    return [before] * 5 + [after] * 5


def test_reward_hacking() -> None:
    """The monitor's standard deviation is 0.4, so a fall of 0.25 of them is 0.1. Both must go apart, over a window,
    beyond chance."""
    assert warned(hacked(0.11), ("gold",)) == ["reward_hacking"]
    assert warned(hacked(0.09), ("gold",)) == []
    assert warned(hacked(0.11, rise=-0.1), ("gold",)) == []  # both fall: no hacking
    assert warned(hacked(-0.2), ("gold",)) == []  # both rise
    assert warned(hacked(0.11)) == []  # gold is trained on
    assert warned(hacked(0.11)[1:], ("gold",)) == []  # too short to tell
    # over 5 rollouts of 8 prompts the standard error of a difference is sqrt(2 / 40) = 0.22 standard deviations, three
    # of them 0.67
    assert warned(hacked(0.66 * 0.4), ("gold",), groups=8) == []
    assert warned(hacked(0.68 * 0.4), ("gold",), groups=8) == ["reward_hacking"]
    # all answers alike at its best: what is lost is measured by how answers differ since
    level = [{**r, "reward/gold/std": 0.0} for r in hacked(0.05)[:5]] + hacked(0.05)[5:]
    assert warned(level, ("gold",)) == []
    # a slow fall from a peak in the middle is seen as well, though the last window is above the first
    peak = [
        {**HEALTHY, "reward/mean": i / 20, "reward/gold": 0.5 + 0.4 * math.sin(i / 6), "reward/gold/std": 0.4}
        for i in range(20)
    ]
    assert warned(peak[:11], ("gold",)) == []
    assert warned(peak, ("gold",)) == ["reward_hacking"]


def test_every_sign_has_a_threshold_a_cause_and_a_page() -> None:
    names = set(get_args(rollout_limits.Name))
    assert names == set(SIGNS) == set(Limits.model_fields) - {"window", "stop"}
    page = (Path(guard.__file__).parents[2] / "docs/guard.md").read_text()
    for name in names:
        default = Limits.model_fields[name].default
        assert f"| `{name}` | {default:g} |" in page, name


def test_a_warning_comes_once_until_it_has_gone_away(capsys: pytest.CaptureFixture[str]) -> None:
    far, near = {**HEALTHY, "kl": 30.0}, dict(HEALTHY)
    watch = Guard(Limits(), "tiny/ppo", (), 128)
    for i, row in enumerate([near, far, far, near, near, far]):
        watch.rollout(i, row, None)
    assert [(w["sign"], w["rollout"], w["gone"]) for w in watch.warnings] == [("kl", 1, 3), ("kl", 5, None)]
    assert watch.metrics() == {"guard/warnings": 2}
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in said] == ["rollout 2", "rollout 4", "rollout 6"]
    assert said[0].startswith(
        "tiny/ppo: rollout 2: warning: kl: KL from the reference is 30.0 nats per answer (limit 25; it was 3.0"
    )
    assert "Likely cause: " in said[0] and "What to do: " in said[0] and said[1].endswith("kl is well again")


def test_what_is_saved_is_all_that_it_needs(tmp_path: Path) -> None:
    """A guard that goes on from a saved state warns like one that saw it all; one that forgets does not (negative
    control)."""
    rows = hacked(0.2)
    whole, half = Guard(Limits(), "run", ("gold",), 128), Guard(Limits(), "run", ("gold",), 128)
    for i, row in enumerate(rows):
        whole.rollout(i, row, None)
        if i < 7:
            half.rollout(i, row, None)
    resumed, forgetful = Guard(Limits(), "run", ("gold",), 128), Guard(Limits(), "run", ("gold",), 128)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for i, row in enumerate(rows[7:], start=7):
        resumed.rollout(i, row, None)
        forgetful.rollout(i, row, None)
    assert resumed.state_dict() == whole.state_dict() and len(whole.warnings) == 1
    assert forgetful.warnings == []
    whole.end(None, tmp_path)
    (row,) = [json.loads(line) for line in (tmp_path / "guard.jsonl").read_text().splitlines()]
    assert (
        row["sign"] == "reward_hacking"
        and "gold, which is not trained on, fell from 0.8 to 0.6, 0.50 of its" in row["message"]
    )
    forgetful.end(None, tmp_path / "none")  # no warnings, no file


def test_a_sign_that_there_is_not() -> None:
    words = ["--base", "b", "--reward", "r", "--data", "d", "--guard.stop", "length,klx"]
    with pytest.raises(InputError) as error:
        parse_flags(ppo.Config, words, prog="align ppo")
    expected = (
        "--guard.stop: expected a list of kl, negative_kl, eos_rate, length, entropy, reward_hacking, "
        "no_variance, ratio"
    )
    assert str(error.value).startswith(expected) and str(error.value).endswith(
        'or sampler_gap, found the text "klx" in it.'
    )
    assert parse_flags(ppo.Config, [*words[:-1], "length,kl"], prog="align ppo").config.guard.stop == ["length", "kl"]


def test_only_signs_that_are_named_stop() -> None:
    with pytest.raises(AlignError) as error:
        warned(history(kl=31.0), stop=["kl", "length"])
    assert error.value.exit_code == 1
    text = str(error.value)
    assert text.startswith(
        "run was stopped by its guard in rollout 10: kl: KL from the reference is 31.0 nats per answer (limit 25"
    )
    assert (
        "raise kl_coef" in text
        and "Nothing was committed" in text
        and "without kl in guard.stop the run goes on" in text
    )
    assert warned(history(kl=31.0), stop=["length"]) == ["kl"]


def test_one_sign_still_there_stops_a_run_that_goes_on() -> None:
    """The warning was given before the checkpoint; the run that goes on is stopped by the sign itself."""
    watch = Guard(Limits(), "run", (), 128)
    for i, row in enumerate(history(kl=31.0)):
        watch.rollout(i, row, None)
    stopping = Guard(Limits(stop=["kl"]), "run", (), 128)
    stopping.load_state_dict(watch.state_dict())
    with pytest.raises(AlignError, match="in rollout 11: kl: KL from the reference is 32"):
        stopping.rollout(10, {**HEALTHY, "kl": 32.0}, None)
