"""Every preference loss beside TRL's own code, `DPOTrainer._compute_loss`: value and gradient, in fp64, on packed rows
against padded ones."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from trl import DPOTrainer

from align import dpo
from align.data.examples import Example
from align.losses import loss as losses
from align.measures.passes import with_column
from align.packed.pack import pack
from align.preference import policy
from tests.losses.tables import Padded, Tables, coarse, padded, trainer
from tests.models.models import pair

EXAMPLES = [pair(3, 2, 5), pair(4, 6, 3, seed=1), pair(2, 4, 4, seed=2), pair(5, 1, 7, seed=3)]
NAMES = get_args(dpo.PairLoss)
CASES: dict[str, dict[str, Any]] = {
    **{name: {"loss": name} for name in NAMES if name != "exo_pair"},
    **{f"{name}, smoothed": {"loss": name, "label_smoothing": 0.1} for name in ("exo_pair", "robust", *dpo.SORTED)},
    **{
        f"{name}, {f}": {"loss": name, "f_divergence": f} | ({"label_smoothing": 0.1} if name == "exo_pair" else {})
        for name in sorted(dpo.OF_DIFFERENCE)
        for f in ("forward_kl", "js_divergence")
    },
    "several": {"loss": {"sigmoid": 0.8, "bco_pair": 0.2, "ipo": 0.5}},
    **{f"{name}, wpo": {"loss": name, "wpo": True} for name in ("sigmoid", "nca_pair")},
    **{f"{name}, ld": {"loss": name, "ld_alpha": 0.3} for name in ("sigmoid", "ipo", "aot", "aot_unpaired")},
    "wpo and ld": {"wpo": True, "ld_alpha": 0.0},
    "another beta": {"beta": 0.7},
    "another tau": {"loss": "discopop", "discopop_tau": 0.5},
}


def with_reference(examples: list[Example], reference: Tables) -> list[Example]:
    with torch.no_grad():
        rows = [pack([e]).split(reference.logprobs("reference", pack([e]))) for e in examples]
    flat = coarse(torch.cat([piece for row in rows for piece in row])).float().numpy().tobytes()
    return with_column(examples, "ref_logprobs", flat)


def ours(model: Tables, reference: Tables, rows: int = 1, **settings: Any) -> tuple[Tensor, Tensor]:
    """Value and gradient over `rows` micro-batches."""
    config = dpo.Config(base="none", data="none", tokens_per_microbatch=1 if rows > 1 else 4096, **settings)
    examples = with_reference(EXAMPLES, reference)
    sort: Any = [name for name in config.losses if name in dpo.SORTED]
    roles: Any = model
    if sort:
        per_sequence = lambda values, batch: dpo.per_sequence(values, batch, config)  # noqa: E731
        examples = policy.coupled(roles, examples, config.tokens_per_microbatch, sort[0], per_sequence)
    parts = [examples[i::rows] for i in range(rows)]
    total = sum(dpo.loss(roles, pack(part), config).scalar({"pairs": len(EXAMPLES)}) for part in parts)
    assert isinstance(total, Tensor)
    return total.detach(), model.gradients(total)


def theirs(
    model: Tables, reference: Tables, dtype: torch.dtype = torch.float64, **settings: Any
) -> tuple[Tensor, Tensor]:
    config = dpo.Config(base="none", data="none", **settings)
    fake = trainer(
        model=Padded(model, dtype),
        ref_model=Padded(reference, dtype, reference=True),
        ld_alpha=config.ld_alpha,
        f_divergence_type=config.f_divergence,
        f_alpha_divergence_coef=config.f_alpha,
        loss_types=list(config.losses),
        loss_weights=list(config.losses.values()),
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        use_weighting=config.wpo,
        args={"discopop_tau": config.discopop_tau},
    )
    found = DPOTrainer._compute_loss(fake, fake.model, padded(EXAMPLES), False)
    return found.detach(), model.gradients(found)


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one.double() - other.double()).abs().max() <= 1e-6 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case: str) -> None:
    """In three micro-batches, so also where a loss sorts the whole step."""
    model, reference = Tables(), Tables(10)
    value, gradient = ours(model, reference, rows=3, **CASES[case])
    right, slope = theirs(model, reference, **CASES[case])
    assert close(value, right) and close(gradient, slope) and slope.abs().max() > 1e-4


@pytest.mark.parametrize("alpha", [0.5, -1.0, 2.0])
def test_the_alpha_divergence(alpha: float) -> None:
    """TRL knows it in 32 bits."""
    model, reference = Tables(), Tables(10)
    settings: dict[str, Any] = {"f_divergence": "alpha_divergence", "f_alpha": alpha, "beta": 0.01}
    value, gradient = ours(model, reference, **settings)
    right, slope = theirs(model, reference, torch.float32, **settings)
    assert (value / right - 1).abs() < 1e-5 and (gradient - slope).abs().max() < 1e-5 * slope.abs().max()


def test_negative_controls() -> None:
    """Another loss, and a step that is sorted a micro-batch at a time, are seen."""
    model, reference = Tables(), Tables(10)
    right, slope = theirs(model, reference, loss="sigmoid")
    for other in ({"loss": "hinge"}, {"beta": 0.11}, {"wpo": True}, {"ld_alpha": 0.9}):
        value, gradient = ours(model, reference, **other)
        assert not close(value, right) and not close(gradient, slope)
    config = dpo.Config(base="none", data="none", loss="aot_unpaired")
    apart = []
    for example in with_reference(EXAMPLES, reference):
        roles: Any = model
        told = policy.coupled(roles, [example], 4096, "aot_unpaired", lambda v, b: dpo.per_sequence(v, b, config))
        apart.append(dpo.loss(roles, pack(told), config).scalar({"pairs": len(EXAMPLES)}))
    assert not close(torch.stack(apart).sum().detach(), theirs(model, reference, loss="aot_unpaired")[0])


def test_metrics_are_trl_s() -> None:
    """Implicit rewards as TRL logs them."""
    model, reference = Tables(), Tables(10)
    config = dpo.Config(base="none", data="none")
    roles: Any = model
    found = dpo.loss(roles, pack(with_reference(EXAMPLES, reference)), config)
    assert isinstance(found, losses.Loss)
    fake = trainer(
        model=Padded(model),
        ref_model=Padded(reference, reference=True),
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=config.beta,
        label_smoothing=0.0,
        use_weighting=False,
    )
    DPOTrainer._compute_loss(fake, fake.model, padded(EXAMPLES), False)
    for name in ("chosen", "rejected", "margins", "accuracies"):
        total, count = found.metrics[f"rewards/{name}"]
        assert float(total / count) == pytest.approx(fake._metrics["train"][f"rewards/{name}"][0], abs=1e-6)
