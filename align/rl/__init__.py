"""Reinforcement learning: what its stages share.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.rl import (
        advantages,
        collect,
        groups,
        kl,
        measured,
        observer,
        reward_gate,
        rewards,
        rollout_figures,
        scored_answers,
        server,
        settings,
        setup,
        shaping,
        stored_examples,
        watch,
    )

__getattr__ = lazy.modules(__name__)
