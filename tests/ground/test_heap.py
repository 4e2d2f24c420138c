"""What lies in memory is set aside while the block lasts, and no longer; what others set aside stays so."""

from __future__ import annotations

import gc

from align.ground.heap import set_aside


def test_it_is_set_aside_while_the_block_lasts() -> None:
    others = gc.get_freeze_count()
    gc.unfreeze()
    try:
        with set_aside():
            assert gc.get_freeze_count() > 1000
            with set_aside():
                pass
            assert gc.get_freeze_count() > 1000
        assert gc.get_freeze_count() == 0
        gc.freeze()
        with set_aside():
            pass
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()
        if others:
            gc.freeze()
