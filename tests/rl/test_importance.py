"""Weights between sampler and trainer beside TRL's own lines, run as they stand in its trainer, and in its loss."""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from align import grpo, online_dpo, rloo
from align.rl.advantages import Advantages, corrected
from align.sampling.rollout import Answer
from tests.models.models import settings

SIZES: dict[str, Any] = dict(reward="none", rollout_size=8, batch_size=8)
MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
TRAINER = [np.array([-1.0, -0.2, -3.0]), np.array([-0.5]), np.array([-2.0, -1.0])]
SAMPLER = [np.array([-1.5, -0.1, -1.0]), np.array([-2.5]), np.array([-2.0, math.nan])]
"""Log-probs of three answers: ratios from e^-2 to e^2; of one token the sampler noted none."""


def padded(rows: Sequence[np.ndarray]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)


def theirs(mode: str, least: float | None, most: float) -> Tensor:
    """(3, 3) or (3, 1): the lines of TRL's `_generate_and_score_completions` that make the weights."""
    from trl import GRPOTrainer

    lines = inspect.getsource(GRPOTrainer._generate_and_score_completions).splitlines()
    first = next(i for i, line in enumerate(lines) if "per_token_logps_diff = (old_per" in line)
    last = next(i for i, line in enumerate(lines[first:], first) if line.strip() == "else:" and "raise" in lines[i + 1])
    names = {"mode": mode, "clip_min": least, "clip_max": most}
    trainer = SimpleNamespace(**{f"vllm_importance_sampling_{name}": value for name, value in names.items()})
    given = {"old_per_token_logps": padded(TRAINER), "sampling_per_token_logps": padded(SAMPLER)}
    place: dict[str, Any] = {"self": trainer, "torch": torch, "math": math, "mask": torch.ones(3, 3), **given}
    exec(textwrap.dedent("\n".join(lines[first:last])), place)
    found: Tensor = place["vllm_importance_sampling_ratio"]
    return found


def ours(mode: str, least: float, most: float) -> Advantages:
    config = settings(grpo.Config, **SIZES, importance=mode, importance_min=least, importance_max=most)
    ones = Advantages({"advantages": [np.ones_like(row) for row in TRAINER], "other": TRAINER}, {"kept": 1.0})
    answers = [Answer([5] * len(row), row, True) for row in SAMPLER]
    return corrected(ones, TRAINER, answers, config)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("least", [0.0, 0.5])
def test_weights_are_those_of_trl(mode: str, least: float) -> None:
    truth = theirs(mode, least or None, 3.0).expand(3, 3)
    found = ours(mode, least, 3.0)
    for row, expected in zip(found.columns["advantages"], truth, strict=True):
        np.testing.assert_allclose(row, expected[: len(row)], rtol=1e-12)
    assert found.columns["other"] is TRAINER and found.metrics["kept"] == 1.0
    assert found.metrics["importance/limited"] > 0
    other = theirs(MODES[MODES.index(mode) - 2], least or None, 3.0).expand(3, 3)  # negative control
    assert not np.allclose(
        np.concatenate(found.columns["advantages"]), torch.cat([other[0], other[1, :1], other[2, :2]])
    )


def test_by_hand() -> None:
    """e^0.5, e^-0.1, e^-2 are within 3; e^2 = 7.4 is not: truncated 3, masked 0. Without a log-prob one counts 1."""
    cut = ours("token_truncate", 0.0, 3.0)
    by_hand = [[math.exp(0.5), math.exp(-0.1), math.exp(-2)], [3.0], [1.0, 1.0]]
    for row, expected in zip(cut.columns["advantages"], by_hand, strict=True):
        np.testing.assert_allclose(row, expected, rtol=1e-12)
    assert cut.metrics["importance/limited"] == pytest.approx(1 / 6)
    assert ours("token_mask", 0.0, 3.0).columns["advantages"][1].tolist() == [0.0]
    whole = ours("sequence_mask", 0.0, 3.0).columns["advantages"]
    np.testing.assert_allclose(whole[0], [math.exp(-1.6)] * 3, rtol=1e-12)
    given = Advantages({"advantages": TRAINER})
    assert corrected(given, TRAINER, [], settings(grpo.Config, **SIZES)) is given  # negative control


def test_what_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"a whole answer is one action\. Take sequence_mask\."):
        settings(rloo.Config, **SIZES, importance="token_mask")
    with pytest.raises(ValidationError, match=r"importance_min \(4\) is above importance_max \(3\)"):
        settings(grpo.Config, **SIZES, importance="token_mask", importance_min=4.0)
    assert "importance_max" in settings(grpo.Config, **SIZES).without_effect("adapter")
    assert "importance_max" not in settings(grpo.Config, **SIZES, importance="token_mask").without_effect("adapter")
    assert "importance" in settings(online_dpo.Config, reward="none").without_effect("adapter")
