"""beta-DPO: the beta of each step against values by hand, and the loss at it against DPO's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from align import dpo
from align.packed.pack import pack
from align.preference.dynamic_beta import DynamicBeta
from align.preference.setup import together
from tests.losses.tables import Tables
from tests.losses.test_preference_trl import EXAMPLES, with_reference
from tests.models.models import settings

NONE: dict[str, Any] = {"base": "none", "data": "none"}


def margins(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_betas_by_hand() -> None:
    """beta 0.1, alpha 0.6, momentum 0.9: means 0, 1, 3, -20; the running mean before each is 0, 0, 0.1, 0.39."""
    dynamic = DynamicBeta(0.1, 0.6, 0.9)
    found = [dynamic.next(margins(*m)) for m in ((0, 0), (0, 2), (3, 3), (-20, -20))]
    by_hand = [0.1, 0.1 * (1 + 0.6 * 1), 0.1 * (1 + 0.6 * 2.9), 0.1 * 0.01]  # 1 - 0.6 * 20.39 is below what is least
    assert found == pytest.approx(by_hand, abs=1e-12)
    assert dynamic.threshold == pytest.approx(0.9 * 0.39 + 0.1 * -20)
    assert found[1] != pytest.approx(DynamicBeta(0.1, 0.6, 0.9).next(margins(3, 3)))  # negative control


def test_what_is_remembered_goes_on() -> None:
    """By a checkpoint, beside what else is carried; a new one would begin anew."""
    one = DynamicBeta(0.1, 0.6, 0.9)
    one.next(margins(2, 4))
    carried = together(reference=None, loss=one)
    again, new = DynamicBeta(0.1, 0.6, 0.9), DynamicBeta(0.1, 0.6, 0.9)
    other = together(reference=None, loss=again)
    assert carried is not None and other is not None and together(reference=None, loss=None) is None
    other.load_state_dict(carried.state_dict())
    assert again.next(margins(1)) == one.next(margins(1)) != new.next(margins(1))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "nca_pair"])
def test_the_loss_is_that_of_its_beta(loss: str, rows: int) -> None:
    """Value and gradient of the step, in any cut, are those at the beta that all its pairs together give."""
    model: Any = Tables()
    examples = with_reference(EXAMPLES, Tables(5))
    config = dpo.Config(**NONE, loss=loss, beta=0.2, dynamic_beta=0.6)
    dynamic = DynamicBeta(0.2, 0.6, 0.9)
    filled = dynamic.fill(model, examples, 4096, lambda v, b: dpo.per_sequence(v, b, config))
    (beta,) = {float(column[-1]) for example in filled for column in example.columns["beta"]}

    def total(config: dpo.Config, some: list[Any], cut: int) -> tuple[Tensor, Tensor]:
        parts = [dpo.loss(model, pack(some[i::cut]), config).scalar({"pairs": len(some)}) for i in range(cut)]
        found = torch.as_tensor(sum(parts))
        return found.detach(), model.gradients(found)

    at_beta = total(dpo.Config(**NONE, loss=loss, beta=beta), examples, 1)
    for mine, truth in zip(total(config, filled, rows), at_beta, strict=True):
        torch.testing.assert_close(mine, truth, rtol=0, atol=1e-6)
    plain = total(dpo.Config(**NONE, loss=loss, beta=0.2), examples, 1)
    assert abs(plain[0] - at_beta[0]) > 1e-3 and abs(beta - 0.2) > 1e-2  # negative control
    logged = dpo.loss(model, pack(filled), config).metrics["beta"]
    assert float(logged[0]) / logged[1] == pytest.approx(beta)


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValidationError, match="dynamic_beta is measured by log ratios, and f_divergence is js_diverg"):
        settings(dpo.Config, dynamic_beta=0.6, f_divergence="js_divergence")
    assert "beta_momentum" in settings(dpo.Config).without_effect(None)
    assert "beta_momentum" not in settings(dpo.Config, dynamic_beta=0.6).without_effect(None)
