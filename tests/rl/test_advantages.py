"""Advantages of every RL stage against values worked out by hand, with the settings that change them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from align import grpo, ppo, reinforce_pp, rloo
from align.ground.errors import AlignError
from align.rl import advantages
from align.rl.advantages import Rollout
from align.rl.rewards import Reward, total
from tests.models.models import settings

SIZES: dict[str, Any] = dict(reward="none", rollout_size=8, batch_size=8)


def rollout(
    scores: list[float], kl: list[list[float]], group_size: int, kl_coef: float = 0.5, **more: list[list[float]]
) -> Rollout:
    """Samples whose log-probs are their KL: the reference gives every token log-prob 0."""
    old = [np.array(k) for k in kl]
    columns = {
        "old_logprobs": old,
        "ref_logprobs": [np.zeros_like(k) for k in old],
        **{n: [*map(np.array, v)] for n, v in more.items()},
    }
    return Rollout(np.array(scores), columns, group_size, kl_coef)


def flat(columns: Any) -> list[list[float]]:
    return [np.round(c, 10).tolist() for c in columns]


def test_grpo_by_hand() -> None:
    """Group 1: scores 1, 2, 6 have mean 3 and sample deviation sqrt((4 + 1 + 9) / 2) = sqrt 7. Group 2 is all the same.
    KL has no part."""
    found = rollout([1, 2, 6, 4, 4, 4], [[0.1], [0.2, 0.3], [0.0], [1.0], [0.0, 0.0], [0.3]], 3)
    config = settings(grpo.Config, **SIZES | {"group_size": 4}, scale_rewards=True)
    scaled = grpo.advantages(found, config)
    deviation = 7**0.5 + advantages.EPSILON
    truth = [[-2 / deviation], [-1 / deviation] * 2, [3 / deviation], [0.0], [0.0, 0.0], [0.0]]
    for ours, by_hand in zip(scaled.columns["advantages"], truth, strict=True):
        np.testing.assert_allclose(ours, by_hand, rtol=1e-12)
    assert scaled.dropped is None and found.without_variance.tolist() == [False, True]
    plain = grpo.advantages(found, config.model_copy(update={"scale_rewards": False, "drop_without_variance": True}))
    assert flat(plain.columns["advantages"]) == [[-2.0], [-1.0, -1.0], [3.0], [0.0], [0.0, 0.0], [0.0]]  # Dr. GRPO
    assert plain.dropped is not None and plain.dropped.tolist() == [False, True]


def test_rloo_by_hand() -> None:
    """Returns 1 - 0.5 x 2 = 0, 2 - 0.5 x 0 = 2 and 6 - 0.5 x (1 + 3) = 4; each less the mean of the other two."""
    found = rollout([1, 2, 6], [[2.0], [1.0, -1.0], [1.0, 3.0]], 3)
    made = rloo.advantages(found, settings(rloo.Config, **SIZES))
    assert flat(made.columns["advantages"]) == [[-3.0], [0.0, 0.0], [3.0, 3.0]]
    free = rloo.advantages(replace(found, kl_coef=0.0), settings(rloo.Config, **SIZES))
    # the price matters
    assert flat(free.columns["advantages"])[0] == [-3.0] and flat(free.columns["advantages"])[1] == [-1.5, -1.5]


def test_reinforce_pp_with_a_groups_baseline_by_hand() -> None:
    """Scores 1, 2, 6 and 4, 4, 4 are -2, -1, 3 and 0, 0, 0 above their group's mean; at 1, 2, 1, 1, 2 and 1 tokens
    these are whitened over all eight tokens, as verl's `compute_reinforce_plus_plus_baseline_outcome_advantage` does;
    the price of KL has no part."""
    found = rollout([1, 2, 6, 4, 4, 4], [[0.1], [0.2, 0.3], [0.0], [1.0], [0.0, 0.0], [0.3]], 3)
    config = settings(reinforce_pp.Config, **SIZES | {"group_size": 4}, baseline="group")
    made = np.concatenate(reinforce_pp.advantages(found, config).columns["advantages"])
    raw = np.array([-2.0, -1.0, -1.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(made, (raw - raw.mean()) / (raw.std() + 1e-8), rtol=1e-12)
    plain = reinforce_pp.advantages(found, config.model_copy(update={"baseline": "rollout"})).columns["advantages"]
    assert not np.allclose(np.concatenate(plain), made)  # negative control
    assert "kl_estimator" in config.without_effect("adapter")
    with pytest.raises(ValidationError, match="group_size is 1, so that every answer is its own"):
        settings(reinforce_pp.Config, **SIZES, baseline="group")


def test_reinforce_pp_by_hand() -> None:
    """Rewards to go: 2 - 0.5 x 3 = 0.5 then 2 - 0.5 x 2 = 1, and 0 - 0.5 x 1 = -0.5; then mean 0 and deviation 1 over
    these three."""
    found = rollout([2, 0], [[1.0, 2.0], [1.0]], 1)
    made = np.concatenate(reinforce_pp.advantages(found, settings(reinforce_pp.Config, **SIZES)).columns["advantages"])
    raw = np.array([0.5, 1.0, -0.5])
    np.testing.assert_allclose(made, (raw - raw.mean()) / raw.std(), rtol=1e-7)
    # negative control: normalised within an answer
    local = np.concatenate([(raw[:2] - raw[:2].mean()) / raw[:2].std(), [0.0]])
    assert np.abs(made - local).max() > 0.1


def test_ppo_by_hand() -> None:
    """gamma = lambda = 1: the advantage is the reward to go less the value, then white over the rollout; the return is
    not white."""
    found = rollout([2, 0], [[1.0, 2.0], [1.0]], 1, old_values=[[0.1, 0.2], [0.3]])
    config = settings(ppo.Config, **SIZES, gae_lambda=1.0)
    made = ppo.advantages(found, config)
    raw = np.array([0.5 - 0.1, 1.0 - 0.2, -0.5 - 0.3])
    np.testing.assert_allclose(np.concatenate(made.columns["advantages"]), (raw - raw.mean()) / raw.std(), rtol=1e-6)
    np.testing.assert_allclose(np.concatenate(made.columns["returns"]), [0.5, 1.0, -0.5], rtol=1e-12)
    returns = np.array([0.5, 1.0, -0.5])
    assert made.metrics["value/explained_variance"] == pytest.approx(1 - raw.var() / returns.var(), rel=1e-12)
    white = ppo.advantages(found, config.model_copy(update={"whiten_rewards": True}))
    rewards = np.array([-0.5, 1.0, -0.5])  # of mean 0
    assert np.concatenate(white.columns["returns"])[1] == pytest.approx(1.0 / rewards.std(), rel=1e-6)


def test_ppo_is_of_the_answers_that_have_a_score() -> None:
    """As if the two others had not been drawn: no loss is taken over them, their values are to stay. Negative control:
    with a score of 0 they are others."""
    kl, values = [[1.0], [1.0, 0.0], [0.5, 2.0], [3.0]], [[0.5], [0.5, 0.5], [0.1, 0.2], [0.7]]
    config = settings(ppo.Config, **SIZES)
    without = rollout([np.nan, 2.0, 1.0, np.nan], kl, 1, old_values=values)
    made = ppo.advantages(without, config)
    alone = ppo.advantages(rollout([2.0, 1.0], kl[1:3], 1, old_values=values[1:3]), config)
    assert made.metrics == alone.metrics and made.dropped is not None
    assert made.dropped.tolist() == [True, False, False, True] and alone.dropped is None
    for name, others in {"advantages": [[0.0]] * 2, "old_values": [[0.5], [0.7]], "returns": [[0.5], [0.7]]}.items():
        assert flat(made.columns[name]) == [others[0], *flat(alone.columns[name]), others[1]]
    none = ppo.advantages(replace(without, scores=np.nan_to_num(without.scores)), config)
    assert flat(none.columns["advantages"])[1] != flat(alone.columns["advantages"])[0]


@pytest.mark.parametrize("baseline", ["rollout", "group"])
def test_reinforce_pp_is_of_the_answers_that_have_a_score(baseline: str) -> None:
    """Whitened by the others alone; of a group with a score nothing is dropped."""
    config = settings(reinforce_pp.Config, **SIZES | {"group_size": 2, "baseline": baseline})
    scores, kl = [1.0, 4.0, np.nan, 3.0, np.nan, np.nan], [[1.0], [1.0, 0.0], [2.0], [0.5], [1.0], [1.0]]
    made = reinforce_pp.advantages(rollout(scores, kl, 2), config)
    assert made.dropped is not None and made.dropped.tolist() == [False, False, True]
    given = np.concatenate([made.columns["advantages"][i] for i in (0, 1, 3)])
    assert [flat(made.columns["advantages"])[i] for i in (2, 4, 5)] == [[0.0]] * 3
    raw = np.array({"rollout": [0.5, 3.5, 4.0, 2.75], "group": [-1.5, 1.5, 1.5, 0.0]}[baseline])
    np.testing.assert_allclose(given, (raw - raw.mean()) / raw.std(), atol=1e-6)


def test_whitening_of_rewards_keeps_their_mean() -> None:
    """As lm-human-preferences (lm_human_preferences/utils/core.py, `whiten`, whose moments are TensorFlow's), in torch.
    Negative control: division alone, which moves the mean."""
    rewards = [np.array([-0.01, -0.02, 2.0]), np.array([-0.01, 1.0]), np.array([0.0, -0.03, -0.02, 0.5])]
    values = torch.tensor(np.concatenate(rewards))
    mean, variance = values.mean(), values.var(unbiased=False)
    truth = (values - mean) * torch.rsqrt(variance + 1e-8) + mean
    ours = np.concatenate(advantages.whitened_about_mean(rewards))
    np.testing.assert_allclose(ours, truth.numpy(), rtol=1e-12)
    assert ours.mean() == pytest.approx(values.mean().item()) and ours.std() == pytest.approx(1.0)
    assert abs((values / values.std()).mean() - values.mean()) > 0.1


def test_rewards_to_go_are_discounted() -> None:
    """1 + 0.5 (2 + 0.5 x 4) = 3, 2 + 0.5 x 4 = 4, 4; without discount 7, 6, 4."""
    rewards = [np.array([1.0, 2.0, 4.0])]
    assert flat(advantages.rewards_to_go(rewards, 0.5)) == [[3.0, 4.0, 4.0]] and flat(
        advantages.rewards_to_go(rewards)
    ) == [[7.0, 6.0, 4.0]]


@pytest.mark.parametrize("tokens", [24, 256])
def test_worthless_values_explain_nothing(tokens: int) -> None:
    """Values drawn at random, the same over an answer, against scores drawn at random: both of variance 1, so 1 - 2 /
    1. CleanRL's figure, by its own lines (ppo.py, `explained_var`), is beside it and finds most of the variance
    explained once answers are long."""
    draw, answers = np.random.default_rng(0), 2000
    scores, values = draw.normal(size=answers), np.repeat(draw.normal(size=(answers, 1)), tokens, 1)
    zero = [[0.0] * tokens] * answers
    found = ppo.advantages(rollout(list(scores), zero, 1, old_values=values.tolist()), settings(ppo.Config, **SIZES))
    assert found.metrics["value/explained_variance"] == pytest.approx(-1.0, abs=0.1)
    y_pred, y_true = np.concatenate(found.columns["old_values"]), np.concatenate(found.columns["returns"])
    cleanrl = 1 - np.var(y_true - y_pred) / np.var(y_true)
    assert found.metrics["value/explained_variance_gae"] == pytest.approx(cleanrl) and (cleanrl > 0.85) == (
        tokens == 256
    )
    # negative control
    foresight = rollout(list(scores), zero, 1, old_values=np.repeat(scores[:, None], tokens, 1).tolist())
    assert ppo.advantages(foresight, settings(ppo.Config, **SIZES)).metrics[
        "value/explained_variance"
    ] == pytest.approx(1.0)


def test_leave_one_out_needs_no_score_of_its_own() -> None:
    """An answer's baseline does not change with its own score, as the group's mean does: the negative control."""
    low, high = (advantages.leave_one_out(np.array([first, 1.0, 2.0, 3.0]), 4) for first in (0.0, 8.0))
    assert high[0] - low[0] == 8.0
    low, high = (advantages.group_relative(np.array([first, 1.0, 2.0, 3.0]), 4, False) for first in (0.0, 8.0))
    assert high[0] - low[0] == 6.0


def test_rewards_are_a_weighted_sum() -> None:
    rewards = [
        Reward(name, weight, lambda samples: np.zeros(0))
        for name, weight in (("model", 1.0), ("rule", -0.5), ("none", 0.0))
    ]
    scores = {"model": np.array([1.0, 2.0]), "rule": np.array([4.0, 0.0]), "none": np.array([9.0, 9.0])}
    assert total(rewards, scores).tolist() == [-1.0, 2.0]
    with pytest.raises(AlignError, match="reward rule gave 1 of 2 answers a score that is not finite"):
        total(rewards, scores | {"rule": np.array([np.nan, 0.0])})
    heavy = [Reward("rule", 1e308, lambda samples: np.zeros(0))]
    with pytest.raises(
        AlignError,
        match=r"^rewards of answer 2 add up to -inf \(rule -9 x 1e\+308\); expected at most 1e\+18 either way",
    ):
        total(heavy, {"rule": np.array([0.0, -9.0])})
