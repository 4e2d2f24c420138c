"""The memory plan for a terminal of 100 columns, and for programs."""

from __future__ import annotations

import textwrap

from align.ground.json import Json
from align.memory.budget import RESERVE, fits, floor, proposals
from align.memory.known import Inquiry
from align.memory.plan import MemoryPlan

WIDTH = 98
BASIS = {
    "cpu": "on the CPU: peak resident memory beyond what imports take (about 0.5 GiB)",
    "cuda": "on the GPU: peak that torch allocates; the driver takes about 0.5 GiB more",
}


def size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def report(plans: dict[str, MemoryPlan | str], asked: Inquiry) -> str:
    """A line or two per stage: peak, phase of the peak and its largest parts; with a budget, whether it fits and what
    would.

    `plans`: name -> its plan, or why there is none.
    """
    width = max(map(len, plans))
    unknown = {name: f"{name:<{width}}  {'?':>9}  {why}" for name, why in plans.items() if isinstance(why, str)}
    if len(unknown) == len(plans):
        return "\n".join(["memory", "", *unknown.values()])
    known = [p.work.rows is not None for p in plans.values() if isinstance(p, MemoryPlan)]
    full = "packed rows full, sequences of max_length"
    rows = full
    if any(known):
        rows = "rows as in the data" if all(known) else f"rows as in the data where that is there, else {full}"
    processes = max((p.work.processes for p in plans.values() if isinstance(p, MemoryPlan)), default=1)
    each = f"of each of {processes} processes, " if processes > 1 else ""
    lines = [f"memory {each}{BASIS[asked.device]}", f"{rows}; within 15 %", ""]
    for name, planned in plans.items():
        if isinstance(planned, str):
            lines.append(unknown[name])
            continue
        parts = " · ".join(f"{part.name} {size(part.bytes)}" for part in planned.largest())
        head = f"{name:<{width}}  {size(planned.peak.bytes):>9}  "
        lines += textwrap.wrap(
            f"{planned.peak.name}: {parts}", WIDTH, initial_indent=head, subsequent_indent=" " * len(head)
        )
        if asked.budget is not None:
            lines += [" " * (width + 2) + line for line in _verdict(planned, asked.budget)]
    kinds = {p.work.shape.kind for p in plans.values() if isinstance(p, MemoryPlan) and p.work.shape.is_estimate}
    lines += ["", *(f"{kind}: planned as if it were a Llama of these sizes" for kind in sorted(kinds))] if kinds else []
    return "\n".join(lines)


def _verdict(planned: MemoryPlan, budget: int) -> list[str]:
    if fits(planned, budget):
        return [f"{'fits':>9}  {size(budget)} with {1 - planned.peak.bytes / budget:.0%} to spare"]
    found = proposals(planned.work, budget)
    if not found:
        least = floor(planned.work)
        largest = " · ".join(f"{part.name} {size(part.bytes)}" for part in least.plan.largest(2))
        with_ = f" with {_words(least.settings)}" if least.settings else ""
        least_line = f"the least{with_} is {size(least.plan.peak.bytes)}, in {least.plan.peak.name}: {largest}"
        return [
            f"{'too large':>9}  for {size(budget)}",
            *textwrap.wrap(least_line, 80, initial_indent=" " * 11, subsequent_indent=" " * 11),
        ]
    lines = [f"{'too large':>9}  for {size(budget)} with {RESERVE:.0%} to spare; it fits with"]
    return lines + [f"{size(choice.plan.peak.bytes):>21}  {_words(choice.settings)}" for choice in found]


def _words(settings: dict[str, object]) -> str:
    return " ".join(f"{key}={str(value).lower()}" for key, value in settings.items())


def as_json(plans: dict[str, MemoryPlan | str], asked: Inquiry) -> Json:
    """The plans for programs, in bytes, with every part of every phase."""
    out: dict[str, Json] = {}
    for name, planned in plans.items():
        if isinstance(planned, str):
            out[name] = {"unknown": planned}
            continue
        phases = {phase.name: {part.name: part.bytes for part in phase.parts} for phase in planned.phases}
        out[name] = {"peak": planned.peak.bytes, "phase": planned.peak.name, "phases": phases}
        if asked.budget is not None:
            choices = [
                {"settings": c.settings, "peak": c.plan.peak.bytes} for c in proposals(planned.work, asked.budget)
            ]
            out[name] |= {"fits": fits(planned, asked.budget), "proposals": choices}
    return {"device": asked.device, "budget": asked.budget, "stages": out}
