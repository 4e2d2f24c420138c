"""Reinforcement learning: what its stages share.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.rl import (
        advantages,
        collect,
        figures,
        kl,
        observer,
        reward_gate,
        rewards,
        saved,
        settings,
        setup,
        shaping,
        watch,
    )

__all__ = [
    "advantages",
    "collect",
    "figures",
    "kl",
    "observer",
    "reward_gate",
    "rewards",
    "saved",
    "settings",
    "setup",
    "shaping",
    "watch",
]

__getattr__ = lazy.modules(__name__)
