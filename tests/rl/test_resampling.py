"""Dynamic sampling: groups without variance are drawn anew from further prompts, within a cap, and counted."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from align import grpo
from align.data.examples import Example
from align.data.steps import in_seeded_passes
from align.rl.collect import Rollouts
from align.rl.groups import ScoredGroup
from align.rl.rewards import Reward
from align.rl.shaping import Moments
from align.sampling.rollout import Answer
from tests.models.models import settings

PROMPTS, GROUPS = 8, 4


def source(varies: Callable[[int], bool], resample: int, **changes: Any) -> Any:
    """`Rollouts` over eight prompts whose two answers score alike or not, four prompts a rollout."""
    given: dict[str, Any] = {"reward": "none", "rollout_size": 8, "batch_size": 8, "group_size": 2, **changes}
    made: Any = object.__new__(Rollouts)
    made.config, made.resample, made.group_size, made.groups = settings(grpo.Config, **given), resample, 2, GROUPS
    made.prompt_ids, made.moments, made.asked, made.resampled = [[1]] * PROMPTS, Moments(), 0, 0
    made.rewards = [Reward("right", 1.0, lambda samples: np.zeros(0))]

    def draw(index: int, which: list[int], attempt: int) -> tuple[list[Example], list[ScoredGroup]]:
        made.attempts.append((index, attempt, len(which)))
        answers = [Answer([5], np.zeros(1), True), Answer([6], np.zeros(1), True)]
        groups = [ScoredGroup(i, [1], answers, [np.array([1.0, float(varies(i))])]) for i in which]
        # a score of 1 beside 0 varies, beside 1 it does not
        return [SimpleNamespace(which=i) for i in which], groups  # type: ignore[misc]

    made.attempts, made.draw = [], draw
    return made


def drawn(made: Any) -> list[int]:
    return [d.group.which for d in made.with_variance(7, made.draw_all(7, GROUPS))]


def test_groups_are_filled_by_hand() -> None:
    """Of the seeded order, prompts whose number is odd score 1 and 1. Each is replaced by the next of the order, until
    four are even."""
    order = in_seeded_passes(range(4 * PROMPTS), PROMPTS, 0)
    made = source(lambda i: i % 2 == 1, resample=10)
    queue, truth, rounds = iter(order[GROUPS:]), order[:GROUPS], 0
    while any(i % 2 for i in truth):
        truth, rounds = [next(queue) if i % 2 else i for i in truth], rounds + 1
    assert drawn(made) == truth and all(i % 2 == 0 for i in truth)
    assert made.attempts == [(7, 0, 4), *((7, k + 1, n) for k, n in enumerate(sizes(order)))] and rounds >= 1
    assert made.resampled == sum(sizes(order)) == made.asked - GROUPS
    assert drawn(source(lambda i: i % 2 == 1, resample=0)) == order[:GROUPS]  # negative control: the setting


def sizes(order: list[int]) -> list[int]:
    """Groups that are drawn in each round."""
    at, odd, found = GROUPS, sum(i % 2 for i in order[:GROUPS]), []
    while odd:
        found.append(odd)
        at, odd = at + odd, sum(i % 2 for i in order[at : at + odd])
    return found


def test_the_cap_holds() -> None:
    """Where nothing varies three rounds are drawn, and what is left is as it was; where all does, none is."""
    made = source(lambda i: True, resample=3)
    order = in_seeded_passes(range(4 * PROMPTS), PROMPTS, 0)
    assert drawn(made) == order[12:16]
    assert [n for *_, n in made.attempts] == [4, 4, 4, 4] and made.resampled == 12
    full = source(lambda i: False, resample=3)
    assert drawn(full) == order[:GROUPS] and full.resampled == 0


def test_moments_move_once() -> None:
    """Running moments count what is trained on alone, and what is shaped decides what varies."""
    made = source(lambda i: i % 2 == 1, resample=10, normalise_rewards="running")
    groups = made.with_variance(7, made.draw_all(7, GROUPS))
    assert made.moments.count == 0
    made.score(groups, made.moments)
    assert made.moments.count == 2 * GROUPS
    clipped = source(lambda i: False, resample=2, reward_clip=0.5, normalise_rewards=None)
    clipped.rewards = [Reward("right", 1.0, lambda samples: np.zeros(0))]
    assert clipped.score(clipped.draw_all(0, GROUPS), Moments())[2].tolist() == pytest.approx([0.5, 0.0] * GROUPS)
