"""Answers by a rollout server, such as vLLM, in the place of this process.

Modules load on first use, so that importing a stage costs no torch.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.rl.server import adapter, checks, client, observers, sampler, settings, threads

__getattr__ = lazy.modules(__name__)
