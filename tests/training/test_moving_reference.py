"""A reference that follows the policy, beside TRL's `SyncRefModelCallback` on the whole weights of both models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trl.trainer.callbacks import SyncRefModelCallback

from align import dpo, grpo
from align.ground.errors import InputError
from align.models.roles import Roles
from align.training.checks.moving_reference import MovingReference
from tests.models.models import make_roles, randomise, settings


def added(roles: Roles, role: str) -> list[Tensor]:
    """What a role adds to each matrix of the base, by PEFT."""
    layers: Any = roles.adapted
    return [sum(layer.get_delta_weight(name) for name in roles.adapters[role]) for layer in layers]


def whole(roles: Roles, role: str) -> nn.Module:
    layers: Any = roles.adapted
    weights = zip(layers, added(roles, role), strict=True)
    return nn.ParameterList([layer.get_base_layer().weight.detach() + delta.detach() for layer, delta in weights])


def start(alpha: float, max_steps: int | None = None) -> tuple[Roles, MovingReference]:
    """A policy that goes on from an adapter, and a reference that is that adapter."""
    roles = make_roles(adapters=("below", "policy", "reference_0"))
    for name, seed in (("below", 1), ("policy", 2), ("reference_0", 2)):
        randomise(roles, name, seed)
    roles.assign("policy", ["below", "policy"])
    roles.assign("reference", ["below", "reference_0"])
    config = settings(dpo.Config, ref_model_sync_steps=3, ref_model_mixup_alpha=alpha, max_steps=max_steps)
    return roles, MovingReference(roles, config)


@pytest.mark.parametrize(("alpha", "moves"), [(0.6, 4), (0.6, 25), (1.0, 3), (0.3, 3)])
def test_weights_are_those_of_trl(alpha: float, moves: int) -> None:
    """After as many as fit, and after many more, of which the oldest have given their places away."""
    roles, moving = start(alpha)
    truth, before = whole(roles, "reference"), added(roles, "reference")
    for i in range(moves):
        randomise(roles, "policy", 10 + i)
        SyncRefModelCallback._sync_target_model(whole(roles, "policy"), truth, alpha)
        moving.after(3 * i + 2)  # not yet
        moving.after(3 * i + 3)
        moving.after(3 * i + 4)  # not again
    assert [step for step, _ in moving.moves] == [3 * i + 3 for i in range(moves)]
    assert len({digest for _, digest in moving.moves}) == moves
    found = whole(roles, "reference")
    largest = max(p.abs().max().item() for p in truth)
    for mine, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=largest * 2**-23)
    assert not any(torch.allclose(a, b) for a, b in zip(before, added(roles, "reference"), strict=True))
    assert not any(p.requires_grad for slot in moving.slots for p in roles.adapter_parameters(slot))


def test_factors_mixed_one_by_one_are_another_model() -> None:
    """Negative control: A and B of LoRA mixed as parameters, which is not the mix of the models."""
    roles, moving = start(0.6)
    before = [p.detach().clone() for p in roles.adapter_parameters("policy")]
    randomise(roles, "policy", 10)
    moving.after(3)
    right = added(roles, "reference")
    for old, now, then in zip(
        before, roles.adapter_parameters("policy"), roles.adapter_parameters("reference_0"), strict=True
    ):
        then.data = 0.6 * now.detach() + 0.4 * old
    roles.assign("reference", ["below", "reference_0"])
    assert not any(torch.allclose(a, b, rtol=1e-2) for a, b in zip(right, added(roles, "reference"), strict=True))


def test_goes_on_from_a_checkpoint() -> None:
    roles, moving = start(0.6)
    again_roles, again = start(0.6)
    randomise(roles, "policy", 10)
    moving.after(3)
    again.load_state_dict(moving.state_dict())
    for each in (roles, again_roles):
        randomise(each, "policy", 11)
    moving.after(6)
    again.after(6)
    assert again.moves == moving.moves and again.figures() == {"reference/moves": 2}
    for a, b in zip(added(roles, "reference"), added(again_roles, "reference"), strict=True):
        assert torch.equal(a, b)
    fresh_roles, fresh = start(0.6)  # negative control
    randomise(fresh_roles, "policy", 11)
    fresh.after(6)
    assert not torch.equal(added(fresh_roles, "reference")[0], added(roles, "reference")[0])


def test_how_many_adapters_it_is_made_of() -> None:
    """At alpha 0.6 a share shrinks by 0.4: 0.4^19 is the first below 2^-24."""

    def snapshots(**given: Any) -> int:
        return settings(dpo.Config, **given).snapshots

    assert 0.4**19 < 2**-24 < 0.4**18
    assert snapshots(ref_model_sync_steps=2, ref_model_mixup_alpha=0.6) == 1 + 19
    assert snapshots(ref_model_sync_steps=2, ref_model_mixup_alpha=0.6, max_steps=9) == 1 + 4
    assert snapshots(ref_model_sync_steps=2) == 1 and snapshots() == 0 and math.log(0.4**19) < -24 * math.log(2)


def test_what_is_refused() -> None:
    config = settings(dpo.Config, ref_model_sync_steps=10, max_steps=20)
    config.check_length(11)
    with pytest.raises(
        InputError, match=r"^ref_model_sync_steps is 10, but the run has 10 steps, so the reference would"
    ):
        config.check_length(10)
    config = settings(grpo.Config, reward="r", rollout_size=32, batch_size=8, ref_model_sync_steps=3)
    config.check_length(5)  # rollouts begin after 0 and 4 steps
    with pytest.raises(InputError, match=r"but the last rollout begins after 0 of 4 steps, .* Train longer, or"):
        config.check_length(4)
    config.model_copy(update={"max_approx_kl": 0.1}).check_length(4)  # a rollout left early ends sooner
    with pytest.raises(InputError, match=r"is 5, but the last rollout begins after 4 of 8 steps, .* Lower it, or"):
        config.model_copy(update={"ref_model_sync_steps": 5}).check_length(8)
    config = settings(dpo.Config, ref_model_sync_steps=10, max_steps=20)
    assert "ref_model_mixup_alpha" in settings(dpo.Config).without_effect("adapter")
    assert "ref_model_mixup_alpha" not in config.without_effect("adapter")
    free = settings(grpo.Config, reward="r", kl_coef=0.0, ref_model_sync_steps=10)
    assert "ref_model_sync_steps" in free.without_effect("adapter")
