"""KTO beside TRL's `KTOTrainer._compute_loss`: value and gradient, in fp64, on packed rows against padded ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trl import KTOTrainer

from align import bco, kto
from align.data.examples import Example
from align.losses import unpaired
from align.measures.passes import with_column
from align.packed.pack import pack
from align.preference import policy
from align.preference.shift import RewardShift
from align.training.steps import make_step
from tests.losses.tables import Padded, Tables, coarse, padded, trainer
from tests.models.models import pair

GOOD = [True, False, False, True, True]


def answers() -> list[Example]:
    out = []
    for i, (prompt, length) in enumerate([(3, 2), (4, 6), (2, 4), (5, 1), (3, 3)]):
        whole = pair(prompt, length, 1, seed=i)
        ids, counts = whole.sequences[0], whole.supervised[0]
        column = [float(GOOD[i])] * (len(ids) - whole.prefix)
        out.append(Example((ids,), (counts,), whole.shared, {"good": (column,)}))
    return out


class Reference(Tables):
    """Beside the policy's tables those of a reference, which rounds as in fp32; KL is above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.other = Tables(35)

    def logprobs(self, role: str, batch: Any, temperature: float = 1.0) -> Tensor:
        if role == "reference":
            return coarse(self.other.logprobs(role, batch)).detach()
        return super().logprobs(role, batch, temperature)


def ours(rows: int = 1, **settings: Any) -> tuple[Tensor, Tensor]:
    roles: Any = Reference()
    config = kto.Config(base="none", data="none", **settings)
    examples = answers()
    with torch.no_grad():
        flat = torch.cat([pack([e]).split(roles.logprobs("reference", pack([e])))[0] for e in examples])
    examples = with_column(examples, "ref_logprobs", flat.float().numpy().tobytes())
    counts = make_step(examples, 4096).counts
    if config.loss == "kto":
        examples = policy.with_kl(roles, examples, 4096 if rows == 1 else 1, 100)
    parts = [kto.loss(roles, pack(examples[i::rows]), config).scalar(counts) for i in range(rows)]
    total = torch.stack(parts).sum()
    return total.detach(), roles.gradients(total)


def theirs(rotate: int = 1, **settings: Any) -> tuple[Tensor, Tensor]:
    config = kto.Config(base="none", data="none", **settings)
    roles, examples = Reference(), answers()
    fake = trainer(
        model=Padded(roles),
        ref_model=Padded(roles.other, reference=True),
        calculate_KL=config.loss == "kto",
        loss_type=config.loss,
        beta=config.beta,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
    )
    fake._compute_kl_logps = partial(KTOTrainer._compute_kl_logps, fake)
    strangers = []
    for i, example in enumerate(examples):  # as `_prepare_dataset` rotates completions
        other = examples[i - rotate]
        ids = [*example.sequences[0][: example.shared], *other.sequences[0][other.shared :]]
        counts = [False] * example.shared + [True] * (len(ids) - example.shared)
        strangers.append(Example((ids,), (counts,), example.shared))
    batch: dict[str, Any] = padded(examples) | {f"KL_{name}": column for name, column in padded(strangers).items()}
    loss = KTOTrainer._compute_loss(fake, fake.model, {**batch, "label": torch.tensor(GOOD)}, False)
    return loss.detach(), roles.gradients(loss)


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-6 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [{}, {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.7}, {"loss": "apo_zero_unpaired"}],
)
def test_value_and_gradient(settings: dict[str, Any], rows: int) -> None:
    """In one micro-batch and in three: KL is that of the whole step."""
    (value, gradient), (right, slope) = ours(rows, **settings), theirs(**settings)
    assert close(value, right) and close(gradient, slope) and slope.abs().max() > 1e-4


def test_negative_controls() -> None:
    """Other mismatched answers, another beta, and no KL are seen."""
    value, gradient = ours()
    for other in (theirs(rotate=2), theirs(beta=0.11), theirs(loss="apo_zero_unpaired")):
        assert not close(value, other[0]) and not close(gradient, other[1])


@pytest.mark.parametrize("rows", [1, 3])
def test_bco_by_hand(rows: int) -> None:
    """Three steps, each told the mean reward of all answers up to its own; -log sigmoid of what good answers are above
    it, and bad ones below, weighted. The installed TRL has no BCO. Negative control: without the shift."""
    roles: Any = Reference()
    config = bco.Config(base="none", data="none", beta=0.4, desirable_weight=1.3, undesirable_weight=0.7)
    examples, shift, before = answers(), RewardShift(config.beta, 4096 if rows == 1 else 1), []
    with torch.no_grad():
        flat = torch.cat([pack([e]).split(roles.logprobs("reference", pack([e])))[0] for e in examples])
        examples = with_column(examples, "ref_logprobs", flat.float().numpy().tobytes())
    for step, chosen in enumerate(([0, 1, 2], [3, 4], [4, 1, 0])):
        told = shift.prepare(roles, [examples[i] for i in chosen])
        counts = make_step(told, 4096).counts
        parts = [bco.loss(roles, pack(told[i::rows]), config).scalar(counts) for i in range(min(rows, len(told)))]
        value = torch.stack(parts).sum()
        with torch.no_grad():
            rewards = [
                0.4 * float(roles.logprobs("policy", pack([e])).sum() - e.columns["ref_logprobs"][0].sum())
                for e in told
            ]
        before += rewards
        mean = sum(before) / len(before)
        signs = [(1, 1.3) if GOOD[i] else (-1, 0.7) for i in chosen]
        each = [w * np.log1p(np.exp(-s * (r - mean))) for r, (s, w) in zip(rewards, signs, strict=True)]
        assert value.item() == pytest.approx(np.mean(each), abs=1e-6)
        bare = [w * np.log1p(np.exp(-s * r)) for r, (s, w) in zip(rewards, signs, strict=True)]
        assert abs(np.mean(bare) - np.mean(each)) > 1e-4, step
    again = RewardShift(config.beta, 4096)
    again.load_state_dict(shift.state_dict())
    assert again.mean == shift.mean == pytest.approx(mean, abs=1e-6)


def test_mismatched_answers_are_of_other_prompts() -> None:
    """Two answers to one prompt follow each other, as a plan puts them: no prompt keeps an answer of its own; of one
    prompt alone there are none."""
    one, two, three = answers()[:3]
    again = Example(([*one.sequences[0][: one.shared], 7, 8],), ([False] * one.shared + [True, True],), one.shared)
    found = policy.mismatched([one, again, two, three], 100)
    tails = [list(e.sequences[0][e.shared :]) for e in found]
    own = [list(e.sequences[0][e.shared :]) for e in (two, three, one, again)]
    assert tails == own
    assert policy.mismatched([one, again], 100) == []
    assert [len(e.sequences[0]) for e in policy.mismatched([one, two], 5)] == [5, 5]


def test_gradient_in_fp64() -> None:
    good, kl = torch.tensor(GOOD), torch.full((5,), 0.3, dtype=torch.float64)
    rewards = torch.linspace(-1, 2, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: unpaired.bco(x, good, kl, 0.5, (1.2, 0.8)).terms["bco"][0], (rewards,))
    assert torch.autograd.gradcheck(lambda x: unpaired.kto(x, good, kl, 0.5, (1.2, 0.8)).terms["kto"][0], (rewards,))
