"""Several reward models as one: their mean less some of their standard deviations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from align import ppo
from align.ground.errors import InputError
from align.judges import Judge
from align.pipeline import load
from align.rl.rewards import Reward, total
from tests.models.models import settings


def model(name: str, weight: float = 1.0) -> Reward:
    return Reward(name, weight, lambda samples: np.zeros(0))


def test_by_hand() -> None:
    """Scores 1, 2, 6 of one answer: mean 3, deviation sqrt((4 + 1 + 9) / 3); 4, 4, 4 of another: 4, whatever is taken
    off. A judge is added to that, a reward that is watched is not."""
    judge: Any = object.__new__(Judge)
    rewards = [model("a"), model("b"), model("c"), model("watched", 0.0), Reward("judge", 0.5, judge)]
    by_name = {"a": np.array([1.0, 4.0]), "b": np.array([2.0, 4.0]), "c": np.array([6.0, 4.0])}
    by_name |= {"watched": np.array([100.0, 100.0]), "judge": np.array([2.0, np.nan])}
    deviation = (14 / 3) ** 0.5
    np.testing.assert_allclose(total(rewards, by_name, 2.0), [3 - 2 * deviation + 1, 4.0], rtol=1e-12)
    np.testing.assert_allclose(total(rewards, by_name, 0.0), [3 + 1, 4.0], rtol=1e-12)
    np.testing.assert_allclose(total(rewards, by_name), [9 + 1, 12.0], rtol=1e-12)  # negative control: their sum
    truth = [np.mean([1, 2, 6]) - np.std([1, 2, 6])]
    np.testing.assert_allclose(total(rewards[:3], by_name, 1.0)[:1], truth, rtol=1e-12)


def test_what_is_refused() -> None:
    alone = settings(ppo.Config, reward="r", reward_deviations=1.0)
    assert "at least two reward artifacts" in alone.without_effect("adapter")["reward_deviations"]
    assert "all runs of a swept stage (`[NAME]`)" in alone.without_effect("adapter")["reward_deviations"]
    several = settings(ppo.Config, reward=["a/r", "b/s"], reward_deviations=1.0, weights={"r": 2.0}, trust_reward=True)
    assert "reward_deviations" not in several.without_effect("adapter")
    artifacts: Any = {f"reward/{name}": SimpleNamespace(metrics={}) for name in "rs"}
    with pytest.raises(
        InputError, match=r"^weights: r is one of an ensemble \(reward_deviations\), in which all count"
    ):
        several.check_parents(artifacts)


ONE_OR_ALL = """
name: ens
base: base
stages:
  reward: {{data: pairs.jsonl, seed: {{sweep: [0, 1, 2]}}}}
  ppo: {{reward: {reward}, data: prompts.jsonl}}
"""


def test_a_sweep_over_seeds_is_an_ensemble(tmp_path: Path) -> None:
    """A list of the stage is all of its runs; its name alone is each of them, in a run of its own."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(ONE_OR_ALL.format(reward="[reward], reward_deviations: 1"))
    runs = [f"reward.seed-{i}" for i in range(3)]
    made = load(recipe).stages
    assert list(made) == [*runs, "ppo"] and made["ppo"].config.model_dump()["reward"] == runs
    recipe.write_text(ONE_OR_ALL.format(reward="reward"))
    made = load(recipe).stages
    assert list(made) == [*runs, *(f"ppo.reward.seed-{i}" for i in range(3))]
    assert [made[f"ppo.reward.seed-{i}"].config.model_dump()["reward"] for i in range(3)] == runs
