"""The clock and the memory gauge that peers and Align are measured with: one Trainer callback, started by whoever
trains.

Kept free of Align and of TRL, so that both sides run the same lines, also in an environment that has only one of them.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from transformers import TrainerCallback

WARM_UP = 2
"""Optimizer steps before the clock starts: allocators and thread pools settle in them."""
MIB = 1 << 20


def resident(peak: bool = False) -> int:
    """Resident memory of this process in bytes, now or at its peak.

    Linux: VmHWM, because `ru_maxrss` of a child also covers what its parent held when it was started.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM" if peak else "VmRSS"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def now() -> dict[str, float]:
    """Wall time and CPU time of the whole process, in seconds; a GPU's work that was queued before is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {"wall": time.perf_counter(), "cpu": time.process_time()}


class Clock(TrainerCallback):
    """Time and memory of training. `whole` times from the first rollout on (PPO); else the clock starts after `WARM_UP`
    optimizer steps."""

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole
        self.before = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident()
        self.start: dict[str, float] = {}
        self.spent: dict[str, float] = {}
        self.begun: dict[str, float] = {}
        self.updates: dict[str, float] = {}
        self.steps = self.memory = 0

    def install(self) -> Clock:
        """Be part of every Trainer that this process makes from here on."""
        transformers.trainer.DEFAULT_CALLBACKS.append(self)  # type: ignore[arg-type]
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.whole:
            self.start = now()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = now()
        if not self.whole and state.global_step == WARM_UP:
            self.start = self.begun

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.start:
            self.updates = {k: self.updates.get(k, 0.0) + v - self.begun[k] for k, v in now().items()}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop(state.global_step - (0 if self.whole else WARM_UP))

    def stop(self, steps: int) -> None:
        end = now()
        self.spent = {k: end[k] - self.start[k] for k in end}
        self.steps = steps
        self.memory = (
            torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident(peak=True)
        ) - self.before

    def report(
        self, rows: int, sequence_tokens: int, before: dict[str, dict[str, float]], libraries: tuple[str, ...]
    ) -> None:
        """Print one JSON line: ms per timed row; of that, in optimizer steps alone (PPO: without sampling and
        measuring); ms per row of what is computed before training, such as a reference pass; and memory.

        `sequence_tokens`: tokens of all sequences as rendered, which must be the same on both sides.
        """
        figures = {f"{k}_ms_per_row": v / rows * 1e3 for k, v in self.spent.items()}
        figures |= {f"update_{k}_ms_per_row": v / rows * 1e3 for k, v in self.updates.items()}
        figures |= {f"{what}_{k}_ms_per_row": v * 1e3 for what, spent in before.items() for k, v in spent.items()}
        versions = {name: version(name) for name in libraries}
        print(
            json.dumps(
                {
                    **figures,
                    "rows": rows,
                    "steps": self.steps,
                    "memory_mib": self.memory / MIB,
                    "sequence_tokens": sequence_tokens,
                    "versions": versions,
                }
            ),
            flush=True,
        )
