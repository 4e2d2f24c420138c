"""Scores from rewards, by hand, and running moments against those of all numbers at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from trl.rewards import get_soft_overlong_punishment

from align import ppo
from align.rl.shaping import Moments, overlong, shaped
from tests.models.models import settings

LENGTHS, ENDED = np.array([3, 5, 2]), np.array([True, False, True])


def scores(rewards: list[float], moments: Moments | None = None, **changes: Any) -> np.ndarray:
    config = settings(ppo.Config, reward="none", **changes)
    return shaped(np.array(rewards), LENGTHS, ENDED, config, moments or Moments())


def test_by_hand() -> None:
    """Defaults: less 1 where the answer did not end. Rewards 1, 2, 6 have mean 3 and deviation sqrt(14 / 3)."""
    assert scores([1, 2, 6]).tolist() == [1, 1, 6]
    assert scores([1, 2, 6], missing_eos_penalty=0.0, length_penalty=0.5).tolist() == [-0.5, -0.5, 5]
    assert scores([1, 2, 6], reward_clip=1.5).tolist() == [1, 0.5, 1.5]
    deviation = (14 / 3) ** 0.5
    white = np.array([-2, -1, 3]) / deviation
    np.testing.assert_allclose(scores([1, 2, 6], normalise_rewards="rollout"), white - [0, 1, 0], rtol=1e-6)
    everything = scores(
        [1, 2, 6], normalise_rewards="rollout", reward_clip=0.7, length_penalty=0.1, missing_eos_penalty=2.0
    )
    np.testing.assert_allclose(everything, [-0.7 - 0.3, -1 / deviation - 0.5 - 2, 0.7 - 0.2], rtol=1e-6)
    # negative control: the other order is something else
    first_clipped = (np.clip([1, 2, 6], -0.7, 0.7) - 3) / deviation
    assert np.abs(everything - first_clipped).max() > 0.1


def test_long_answers_are_punished_softly() -> None:
    """TRL's reward of the same name gives what is taken off, from nothing to 1."""
    lengths = np.arange(1, 13)
    for longest, buffer in ((12, 4), (11, 5)):
        theirs = get_soft_overlong_punishment(longest, buffer)([[0] * n for n in lengths])
        np.testing.assert_allclose(-overlong(lengths, longest, buffer), theirs, atol=1e-12)
    given: dict[str, Any] = {"max_new_tokens": 6, "missing_eos_penalty": 0.0}
    assert scores([1, 2, 6], **given, overlong_buffer=2).tolist() == [1, 1.5, 6] != scores([1, 2, 6], **given).tolist()
    with pytest.raises(ValueError, match=r"overlong_buffer \(6\) is not below max_new_tokens \(6\)"):
        scores([1, 2, 6], **given, overlong_buffer=6)


def test_what_has_no_score_keeps_none() -> None:
    """The others are shaped as if it were not there: of 1 and 6 the mean is 3.5, the deviation 2.5."""
    np.testing.assert_allclose(scores([1, np.nan, 6], normalise_rewards="rollout"), [-1, np.nan, 1])
    assert scores([1, 0, 6], normalise_rewards="rollout")[0] != pytest.approx(-1)  # negative control: 0 is a score


def test_running_moments_are_those_of_all_rollouts_so_far() -> None:
    draw = np.random.default_rng(0)
    rollouts = [draw.normal(3 * i, 1 + i, size=3) for i in range(6)]
    moments = Moments()
    for i, rewards in enumerate(rollouts):
        found = scores(rewards.tolist(), moments, normalise_rewards="running", missing_eos_penalty=0.0)
        so_far = np.concatenate(rollouts[: i + 1])
        np.testing.assert_allclose(found, (rewards - so_far.mean()) / (so_far.std() + 1e-8), rtol=1e-9)
    assert (moments.count, moments.mean, moments.deviation) == (
        18,
        pytest.approx(so_far.mean()),
        pytest.approx(so_far.std()),
    )
    alone = scores(rollouts[-1].tolist(), normalise_rewards="rollout", missing_eos_penalty=0.0)
    assert np.abs(found - alone).max() > 0.1  # negative control: of this rollout alone
    again = Moments(**moments.state_dict())
    assert again == moments and again is not moments
    untouched = Moments()
    scores([1, 2, 6], untouched, normalise_rewards="rollout")
    scores([1, 2, 6], untouched)
    assert untouched == Moments()
