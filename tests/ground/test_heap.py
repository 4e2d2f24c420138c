"""What lies in memory is set aside while the block lasts, and no longer; what others set aside stays so."""

from __future__ import annotations

import gc

import pytest

from align.ground.heap import set_aside


def looked_at(thing: object) -> bool:
    """Whether the collector goes through it: `gc.get_objects` leaves out what is set aside."""
    return any(other is thing for other in gc.get_objects())


def test_it_is_set_aside_while_the_block_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[object] = []
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 0)
    with set_aside():
        assert not looked_at(there)
        monkeypatch.setattr(gc, "get_freeze_count", lambda: 1)
        with set_aside():
            pass
        assert not looked_at(there)
    assert looked_at(there)
    gc.freeze()
    with set_aside():
        pass
    assert not looked_at(there)
