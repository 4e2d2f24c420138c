"""A merged copy that takes the base's own memory, and logits that are compared a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch

from align.measures.logits import FEW_ROWS, compare_logits
from align.models.merged import MergedCopy
from tests.models.models import make_roles


def test_merged_into_the_base_is_the_merged_copy_without_its_memory() -> None:
    """Bit for bit the same matrices, in the storages that the base had; negative control: a copy has its own."""
    roles = make_roles()
    copied, taken = MergedCopy(roles, "policy"), MergedCopy(roles, "policy")
    copied.merged()
    places = [layer.get_base_layer().weight.data_ptr() for layer, _, _ in taken.matrices]
    taken.merged(into_base=True)
    assert [plain.weight.data_ptr() for _, plain, _ in taken.matrices] == places
    for (_, want, _), (_, got, _) in zip(copied.matrices, taken.matrices, strict=True):
        assert torch.equal(got.weight, want.weight) and want.weight.data_ptr() not in places


def test_a_matrix_that_is_tied_to_another_is_merged_beside_it() -> None:
    """Two layers with one matrix have an adapter each: in place, the second would be merged into the first's."""
    roles = make_roles()
    layers: dict[tuple[int, ...], list[Any]] = {}
    for layer, _, _ in MergedCopy(roles, "policy").matrices:
        layers.setdefault(tuple(layer.get_base_layer().weight.shape), []).append(layer)
    first, second, *_ = next(several for several in layers.values() if len(several) > 1)
    second.get_base_layer().weight = first.get_base_layer().weight
    shared = first.get_base_layer().weight.clone()
    copied, taken = MergedCopy(roles, "policy"), MergedCopy(roles, "policy")
    copied.merged()
    taken.merged(into_base=True)
    assert all(
        torch.equal(got.weight, want.weight)
        for (_, got, _), (_, want, _) in zip(taken.matrices, copied.matrices, strict=True)
    )
    assert torch.equal(first.get_base_layer().weight, shared)
    others = [layer for layer, _, _ in taken.matrices if layer not in (first, second)]
    assert others[0].get_base_layer().weight.data_ptr() in {
        plain.weight.data_ptr() for _, plain, _ in taken.matrices
    }  # negative control


def test_few_rows_at_a_time_are_compared_as_all_at_once() -> None:
    """Against the formula over all rows, bit for bit; negative control: other logits."""
    draw = torch.Generator().manual_seed(0)
    before, after = (torch.randn(3 * FEW_ROWS + 5, 1000, generator=draw) for _ in range(2))
    p, q = torch.log_softmax(before.double(), -1), torch.log_softmax(after.double(), -1)
    wanted = {
        "logit_max_abs_diff": (before - after).abs().max().item(),
        "kl": (p.exp() * (p - q)).sum(-1).mean().item(),
        "greedy_agreement": (before.argmax(-1) == after.argmax(-1)).double().mean().item(),
    }
    assert compare_logits(before, after) == wanted
    assert compare_logits(after, before)["kl"] != wanted["kl"]
