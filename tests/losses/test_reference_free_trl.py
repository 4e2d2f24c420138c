"""SimPO, CPO and ORPO beside TRL's own trainers, `CPOTrainer` and `ORPOTrainer`: value and gradient, in fp64, on packed
rows against padded ones."""

from __future__ import annotations

import os
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from align import cpo, orpo, simpo
from align.losses import reference_free
from align.packed.pack import pack
from align.training.steps import make_step
from tests.losses.tables import Padded, Tables, padded, trainer
from tests.models.models import pair

EXAMPLES = [pair(1, 2, 5), pair(1, 6, 3, seed=1), pair(1, 4, 4, seed=2), pair(1, 1, 7, seed=3)]
"""Prompts of one token, which no next-token loss can count: TRL's ORPO would count them."""
CASES: dict[str, tuple[ModuleType, dict[str, Any], dict[str, Any]]] = {
    "simpo": (
        simpo,
        {"beta": 2.0, "gamma": 0.5},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
    ),
    "simpo, smoothed": (
        simpo,
        {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.2},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0, "label_smoothing": 0.2},
    ),
    "alphapo": (
        simpo,
        {"beta": 2.0, "gamma": 0.1, "alphapo_alpha": 0.25},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.1, "cpo_alpha": 0.0, "alpha": 0.25},
    ),
    "alphapo, below 0": (
        simpo,
        {"beta": 2.0, "gamma": 0.1, "alphapo_alpha": -0.5},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.1, "cpo_alpha": 0.0, "alpha": -0.5},
    ),
    "cpo": (cpo, {}, {"loss_type": "sigmoid"}),
    "cpo, smoothed": (cpo, {"label_smoothing": 0.2}, {"loss_type": "sigmoid", "label_smoothing": 0.2}),
    "cpo, hinge": (cpo, {"loss": "hinge", "nll_coef": 0.5}, {"loss_type": "hinge", "cpo_alpha": 0.5}),
    "cpo, ipo": (cpo, {"loss": "ipo", "beta": 0.5}, {"loss_type": "ipo", "beta": 0.5}),
    "orpo": (orpo, {"beta": 0.3}, {"beta": 0.3}),
}


def ours(stage: ModuleType, rows: int, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    model: Any = Tables()
    config = stage.Config(base="none", data="none", **settings)
    counts = make_step(EXAMPLES, 4096).counts
    parts = [pack(EXAMPLES[i::rows]) for i in range(rows)]
    total = torch.stack([stage.loss(model, part, config).scalar(counts) for part in parts]).sum()
    return total.detach(), model.gradients(total)


def theirs(kind: Any, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    model = Tables()
    more = {"alpha": 0.0, "simpo_gamma": 0.0, "label_smoothing": 0.0, "cpo_alpha": 1.0, "beta": 0.1, **settings}
    fake = trainer(model=None, is_encoder_decoder=False, padding_value=0, pad_token_id=0, **more)
    for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(kind, name):
            setattr(fake, name, partial(getattr(kind, name), fake))
    fake.concatenated_inputs, fake.get_batch_logps = kind.concatenated_inputs, kind.get_batch_logps
    both = padded(EXAMPLES)
    labels = both["input_ids"].masked_fill(both["completion_mask"] == 0, -100)
    columns = {"input_ids": both["input_ids"], "attention_mask": both["attention_mask"], "labels": labels}
    batch = {
        f"{side}_{name}": half
        for name, column in columns.items()
        for side, half in zip(("chosen", "rejected"), column.chunk(2), strict=True)
    }
    loss, _ = kind.get_batch_loss_metrics(fake, Padded(model), batch)
    return loss.detach(), model.gradients(loss)


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-6 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case: str, rows: int) -> None:
    """In one micro-batch and in three; another weight is seen."""
    stage, mine, its = CASES[case]
    value, gradient = ours(stage, rows, mine)
    right, slope = theirs(ORPOTrainer if stage is orpo else CPOTrainer, its)
    assert close(value, right) and close(gradient, slope) and slope.abs().max() > 1e-3
    value, gradient = ours(stage, rows, mine | {"beta": 0.77})
    assert not close(value, right) and not close(gradient, slope)


def test_gradients_in_fp64() -> None:
    generator = torch.Generator().manual_seed(0)
    per_token = -torch.rand(6, generator=generator, dtype=torch.float64) - 0.05
    for loss in (
        lambda x: reference_free.simpo(reference_free.shaped(x, 0.3), 0.5, 0.1),
        lambda x: reference_free.odds_ratio(x, 0.3),
    ):
        total = lambda x, loss=loss: next(iter(loss(x).terms.values()))[0]  # noqa: E731
        assert torch.autograd.gradcheck(total, (per_token.clone().requires_grad_(),), atol=1e-8)


def test_the_rest_of_a_probability() -> None:
    """log(1 - p) from log p, at both ends: 1 - e^-40 is 1 in 64 bits, and so is e^-1e-20."""
    found = reference_free.log_of_rest(torch.tensor([-40.0, -1.0, -1e-20], dtype=torch.float64))
    by_hand = torch.tensor([-4.248354255291589e-18, -0.4586751453870819, -46.05170185988092], dtype=torch.float64)
    torch.testing.assert_close(found, by_hand, rtol=1e-12, atol=0)
