"""What processes that share a base do together: equally many forwards, in one order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.models.models import make_roles, pairs


def test_how_many_is_asked_before_the_first_forward() -> None:
    """Of processes with 1, 0 and 3 micro-batches each first hears of 3, and then has 3; the control is a base that is
    whole for the while, of which nobody is asked."""
    roles: Any = make_roles(adapters=("policy",))
    examples = pairs()
    for mine in (1, 0, 3):
        done: list[object] = []
        roles.shards = SimpleNamespace(held=0, most=lambda count, done=done: done.append(count) or 3)
        budget = 1 if mine == 3 else 1 << 20
        for indices, batch in roles.batches(examples[:mine], budget):
            assert len(batch.input_ids) > 0
            done.append(bool(indices))
        assert done == [mine, *[True] * mine, *[False] * (3 - mine)]
    roles.shards.held = 1
    assert [indices for indices, _ in roles.batches(examples[:1], 1 << 20)] == [[0]]
