"""Precision: what `auto` is on this machine, and why."""

from __future__ import annotations

import math
import time
from functools import cache
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


FASTER = 1.3
"""`auto` takes bf16 on a CPU where a training step's products take at least this many times as long in fp32: a figure
near 1 would be decided by noise, and the choice decides results."""


def resolve_precision(precision: Precision) -> torch.dtype:
    """`auto`: bf16 on a GPU that computes it natively, and on a CPU where it is measured to be faster; else fp32."""
    return explain_precision(precision)[0]


def name_of(dtype: torch.dtype) -> Precision:
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def explain_precision(precision: Precision) -> tuple[torch.dtype, str]:
    """What a precision is here, and why, in words; without words where it is what was asked for."""
    if precision != "auto":
        return DTYPES[precision], ""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        if native:
            return torch.bfloat16, "this GPU computes it natively"
        return torch.float32, "this GPU has no bf16 units"
    if not _cpu_has_bf16():  # there bf16 runs about 60 times slower
        return torch.float32, "this CPU has no bf16 units"
    speed = _bf16_speed()
    faster = speed >= FASTER
    said = f"large matrix products take {speed:.1f} times as long in fp32 as in bf16 on this CPU"
    return (torch.bfloat16, said) if faster else (torch.float32, f"{said}, and bf16 is taken from {FASTER} on")


def _cpu_has_bf16() -> bool:
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "AMX" in capabilities or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


@cache
def _bf16_speed() -> float:
    """How many times as long a linear layer's forward and backward take in fp32 as in bf16, in CPU time; measured once
    per process."""
    rows, width = 256, 1024
    best: dict[str, float] = {}
    # without gradients and from a generator of its own: a run's draws and graphs must not depend on a measurement
    draw = torch.Generator().manual_seed(0)
    x, w, upstream = (torch.rand(n, width, generator=draw) for n in (rows, width, rows))
    narrow, wide = ([t.to(dtype) for t in (x, w, upstream)] for dtype in (torch.bfloat16, torch.float32))
    with torch.no_grad():
        for _ in range(5):  # the shortest of several, in turn: whatever else runs makes times longer, never shorter
            for name, (x, w, upstream) in (("bf16", narrow), ("fp32", wide)):
                start = time.process_time()
                _ = x @ w.T, upstream @ w, upstream.T @ x
                best[name] = min(best.get(name, math.inf), time.process_time() - start)
    return best["fp32"] / best["bf16"]
