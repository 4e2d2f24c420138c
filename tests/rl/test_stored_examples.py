"""Examples come back from a checkpoint as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from align.packed.pack import pack
from align.rl.stored_examples import dump, restore
from tests.models.models import pair
from tests.training.test_invariants import groups


def test_examples_come_back_from_a_file_that_may_hold_no_code(tmp_path: Path) -> None:
    """Bit for bit as they are packed; a column that was changed is seen."""
    for examples in (groups(5), [pair(4, 2, 5, margin=0.5), pair(3, 3, 2, seed=1)]):
        torch.save(dump(examples), tmp_path / "saved.pt")
        again = restore(torch.load(tmp_path / "saved.pt", weights_only=True))
        assert [e.shared for e in again] == [e.shared for e in examples] and [e.margin for e in again] == [
            e.margin for e in examples
        ]
        assert [[list(s) for s in e.sequences] for e in again] == [[list(s) for s in e.sequences] for e in examples]
        whole, back = pack(examples), pack(again)
        for name in ("input_ids", "position_ids", "targets", "loss_mask", "segment_ids", "ends", "margins"):
            assert torch.equal(getattr(whole, name), getattr(back, name))
        assert whole.columns.keys() == back.columns.keys() and whole.layout == back.layout
        assert all(torch.equal(whole.columns[name], back.columns[name]) for name in whole.columns)
    assert restore(dump([])) == []
    state = dump(groups(5))
    state["columns"]["advantages"]["values"] += 1e-3  # negative control
    assert not np.array_equal(pack(restore(state)).columns["advantages"], pack(groups(5)).columns["advantages"])
