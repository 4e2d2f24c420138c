"""Offloaded activations give the same gradients, and weights are not moved."""

from __future__ import annotations

import torch

from align.losses.tokens import next_token
from align.packed.pack import pack
from align.training.offload import Offload
from tests.models.models import make_roles, pairs


def gradients(smallest: int | None) -> tuple[dict[str, torch.Tensor], int]:
    roles = make_roles(adapters=("policy",))
    roles.train_only("policy")
    batch, moved = pack(pairs()), 0
    if smallest is None:
        loss = next_token(roles.logprobs("policy", batch))
    else:
        offload = Offload(roles, smallest)
        with offload:
            loss = next_token(roles.logprobs("policy", batch))
        moved = offload.moved
    loss.scalar(batch.counts).backward()
    return {name: p.grad for name, p in roles.named_parameters() if p.grad is not None}, moved


def test_same_gradients_and_weights_stay() -> None:
    (plain, _), (offloaded, moved), (kept, nothing) = gradients(None), gradients(1), gradients(1 << 30)
    assert set(plain) == set(offloaded)
    assert all(torch.equal(plain[name], offloaded[name]) and torch.equal(plain[name], kept[name]) for name in plain)
    assert moved > 0 and nothing == 0
    roles = make_roles(adapters=("policy",))
    roles.train_only("policy")
    weight = roles.base.get_input_embeddings().weight
    x = torch.randn(4, weight.shape[1], dtype=weight.dtype, requires_grad=True)
    offload = Offload(roles, 1)
    with offload:
        (x @ weight.T).sum()
    assert offload.moved == 0  # x needs the weight alone for its gradient
    offload = Offload(torch.nn.Identity(), 1)
    with offload:
        (x @ weight.T).sum()
    assert offload.moved == weight.nbytes  # negative control: a weight it does not know is moved
