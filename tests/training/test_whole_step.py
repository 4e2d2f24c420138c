"""What couples the records of a step is measured over all of them, whoever has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from align.packed.pack import Batch
from align.training import steps, whole_step
from tests.losses.tables import Tables
from tests.models.models import pairs


def sums(roles: Any, batch: Batch) -> Tensor:
    return batch.per_sequence(roles.logprobs("policy", batch))


@pytest.mark.parametrize("budget", [1, 40, 4096])
def test_every_rank_knows_every_sequence(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks measure their own share, each sequence once, and add up to what one process finds, in any cut into
    micro-batches; in the order of the examples."""
    model: Any = Tables()
    examples = pairs()
    alone = whole_step.of_sequences(model, examples, budget, sums)
    one_by_one = [whole_step.of_sequences(model, [e], 4096, sums) for e in examples]
    torch.testing.assert_close(alone, torch.cat(one_by_one))
    shares: list[Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda found: shares.append(found.clone()))
    for rank in range(2):
        monkeypatch.setattr(whole_step, "rank_and_world", lambda: (0, 2))
        monkeypatch.setattr(steps, "rank_and_world", lambda rank=rank: (rank, 2))
        whole_step.of_sequences(model, examples, budget, sums)
    assert all(share.count_nonzero() < len(alone) for share in shares)
    assert not (shares[0].bool() & shares[1].bool()).any()
    torch.testing.assert_close(shares[0] + shares[1], alone)


def test_a_value_stands_at_every_token() -> None:
    """Of each sequence its own."""
    examples = pairs(3)
    found = whole_step.with_value(examples, "told", torch.arange(6.0))
    for i, example in enumerate(found):
        assert [set(column) for column in example.columns["told"]] == [{2.0 * i}, {2.0 * i + 1}]
        lengths = [len(s) - example.prefix for s in example.sequences]
        assert [len(column) for column in example.columns["told"]] == lengths
