"""A budget of memory: what it says, and the smallest changes of settings that a stage fits into it with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from align.ground.errors import InputError
from align.memory.kinds import plan
from align.memory.plan import MemoryPlan, Workload

UNITS = {
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
RESERVE = 0.1
"""Share of a budget that stays free: predictions are within 15 %."""
SMALLEST_ROW = 256


@dataclass(frozen=True)
class Choice:
    """Settings to change, as they are written in a recipe, and what is predicted with them."""

    settings: dict[str, object]
    plan: MemoryPlan


def parse_size(text: str) -> int:
    """Bytes of "24GiB", "24 GB" or "800MiB". Raises: InputError."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in UNITS or not float(found[1]):
        raise InputError(f"--memory takes a size such as 24GiB, 24GB or 800MiB; found {text!r}.")
    return int(float(found[1]) * UNITS[found[2].upper()])


def fits(planned: MemoryPlan, budget: int) -> bool:
    return planned.peak.bytes <= (1 - RESERVE) * budget


def proposals(work: Workload, budget: int) -> list[Choice]:
    """Ways to fit; every one fits. Empty where the stage fits as it is, and where nothing helps: see `floor`.

    Each setting alone, changed as little as is enough, in the order that costs least: shorter rows (the same result in
    about the same time), activation checkpointing (a third more time), shards over the processes, a smaller rollout, a
    quantised base, a base in CPU memory. Where none is enough, several together.
    """
    if fits(plan(work), budget):
        return []
    *single, together = _chains(work)
    found = [choice for chain in single if (choice := _first_that_fits(work, chain, budget))]
    several = None if found else _first_that_fits(work, together, budget)
    return [several] if several else found


def _first_that_fits(work: Workload, chain: list[dict[str, object]], budget: int) -> Choice | None:
    return next((Choice(s, found) for s in chain if fits(found := plan(_changed(work, s)), budget)), None)


def floor(work: Workload) -> Choice:
    """The least that these settings can bring a stage down to."""
    choices = [Choice(s, plan(_changed(work, s))) for chain in _chains(work) for s in chain] or [Choice({}, plan(work))]
    return min(choices, key=lambda choice: choice.plan.peak.bytes)


def _chains(work: Workload) -> Iterator[list[dict[str, object]]]:
    """Ways to save, each from the smallest change to the largest; the last is all of them, one after the other."""
    rows: list[dict[str, object]] = [{"tokens_per_microbatch": n} for n in _row_lengths(work)]
    again: list[dict[str, object]] = []
    if getattr(work.config, "activation_checkpointing", None) is False:
        again = [{"activation_checkpointing": True}]
    fewer: list[dict[str, object]] = [
        {"rollout_size": n, **({"batch_size": n} if n < work.config.batch_size else {})} for n in _rollouts(work)
    ]
    shards: list[dict[str, object]] = (
        [{"parallel": "shard"}] if work.processes > work.shards and hasattr(work.config, "parallel") else []
    )
    smaller: list[dict[str, object]] = (
        [] if work.quantize or work.whole else [{"base.quantize": q} for q in ("int8", "nf4")]
    )
    waiting: list[dict[str, object]] = []
    if work.device == "cuda" and getattr(work.config, "base_offload", None) is False and not work.whole:
        waiting = [{"base_offload": True}]
    yield from (rows, again, shards, fewer, smaller, waiting)
    chain: list[dict[str, object]] = [{**a, **r} for a in again for r in rows]
    so_far: dict[str, object] = {**(again[-1] if again else {}), **(rows[-1] if rows else {})}
    chain += [{**so_far, **s} for s in shards]
    so_far |= shards[-1] if shards else {}
    chain += [{**so_far, **f} for f in fewer]
    so_far |= fewer[-1] if fewer else {}
    chain += [{**so_far, **s} for s in smaller + waiting]
    yield chain


def _row_lengths(work: Workload) -> list[int]:
    """Halves of tokens_per_microbatch, down to one record of the longest kind: shorter rows would not be shorter."""
    out, n = [], getattr(work.config, "tokens_per_microbatch", 0)
    least = max(SMALLEST_ROW, getattr(work.config, "max_length", SMALLEST_ROW))
    while n // 2 >= least:
        out.append(n := n // 2)
    return out


def _rollouts(work: Workload) -> list[int]:
    """Halves of rollout_size that are whole groups, and whole steps unless steps shrink too."""
    c = work.config
    out, n = [], getattr(c, "rollout_size", 0)
    while n >= 16:
        n //= 2
        if n % getattr(c, "group_size", 1) == 0 and (n < c.batch_size or n % c.batch_size == 0):
            out.append(n)
    return out


def _changed(work: Workload, settings: dict[str, object]) -> Workload:
    config = {key: value for key, value in settings.items() if not key.startswith("base.")}
    quantize = settings.get("base.quantize", work.quantize)
    return replace(work, config=work.config.model_copy(update=config), quantize=str(quantize) if quantize else None)
