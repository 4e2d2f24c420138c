"""Tensors: packed batches in, log-probs, scores, values and losses out.

Submodules load on first use, so that importing a stage costs no torch.
"""

import importlib
import logging
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.core import (
        advantages,
        attention,
        checkpoint,
        classifier,
        comparison,
        experience,
        foreign,
        forward,
        intervals,
        keep,
        load,
        losses,
        merged,
        metrics,
        offload,
        pack,
        probe,
        reload,
        rewards,
        roles,
        rollout,
        scratch,
        source,
        start,
        targets,
        tokens,
        trackers,
        trainer,
    )

# bitsandbytes, which PEFT imports, reports optional kernels that are missing at every start
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__all__ = [
    "advantages",
    "attention",
    "checkpoint",
    "classifier",
    "comparison",
    "experience",
    "foreign",
    "forward",
    "intervals",
    "keep",
    "load",
    "losses",
    "merged",
    "metrics",
    "offload",
    "pack",
    "probe",
    "reload",
    "rewards",
    "roles",
    "rollout",
    "scratch",
    "source",
    "start",
    "targets",
    "tokens",
    "trackers",
    "trainer",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"align.core.{name}")
    raise AttributeError(f"module 'align.core' has no attribute {name!r}")
