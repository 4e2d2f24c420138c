"""What a stage took: peak memory, and the machine and versions it ran on."""

from __future__ import annotations

import os
import platform
import resource
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from align.ground.json import Json


def reset_peak_memory() -> None:
    """Measure from here on: a stage of a recipe is not charged for those before it (Linux and CUDA; elsewhere it is the
    process's)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Peak memory in bytes since the last reset: the GPU's where there is one, else resident memory."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def host() -> Json:
    """Machine and versions, for the cost record."""
    return {"node": platform.node(), "cpus": os.cpu_count(), "python": platform.python_version(), **libraries()}


def libraries() -> dict[str, str]:
    """Versions of what computes."""
    return {name: version(name) for name in ("torch", "transformers", "peft")}
