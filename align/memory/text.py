"""The memory plan for a terminal of 80 columns, and for programs."""

from __future__ import annotations

import fnmatch
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, takewhile

from align.ground.json import Json
from align.memory.budget import RESERVE, fits, floor, proposals
from align.memory.known import Inquiry
from align.memory.plan import MemoryPlan

WIDTH = 79
LONG = 30
"""Characters of a name beyond which names stand on lines of their own."""
BASIS = {
    "cpu": "on the CPU: peak resident, beyond what imports take (about 0.5 GiB)",
    "cuda": "on the GPU: peak that torch allocates; the driver takes about 0.5 GiB more",
}


def size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def in_few(runs: Sequence[str], names: Iterable[str]) -> dict[str, list[str]]:
    """`patterns`, with how many runs each of several stands for: "r/seed-*/dpo.beta-0.* (36 runs)"."""
    few = patterns(runs, names)
    return {f"{one} ({len(part):,} runs)" if len(part) > 1 else one: part for one, part in few.items()}


def patterns(runs: Sequence[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Several runs by as few patterns as there are that of all these `names` stand for them alone, and which of them
    each stands for; what has none stands for itself."""
    names = list(names)
    few = {name: [name] for name in runs}
    for way in (lambda name: "", lambda name: name.rpartition("/")[0], lambda name: name.rpartition(".")[2]):
        parts: dict[str, list[str]] = {}
        for name in runs:
            parts.setdefault(way(name), []).append(name)
        told: dict[str, list[str]] = {}
        for part in parts.values():
            one = _in_one(part, names)
            told |= {one: part} if one else {name: [name] for name in part}
        few = told if len(told) < len(few) else few
    return few


def _in_one(runs: Sequence[str], names: Sequence[str]) -> str | None:
    """None for what differs in more than the values of a sweep, or where a pattern would stand for others, too."""
    rows = [name.split("/") for name in runs]
    if len(runs) < 2 or len({*map(len, rows)}) > 1:
        return None
    pattern = "/".join(map(_alike, zip(*rows, strict=True)))
    return pattern if {*fnmatch.filter(names, pattern)} == {*runs} else None


def _alike(parts: Sequence[str]) -> str:
    """What stands for these parts of names: their beginning and end, whole words, around what is swept; empty where
    more than values of a sweep differs."""
    if len({*parts}) == 1:
        return parts[0]
    start = _begin(parts)
    end = re.sub(r"^[^.]*", "", _begin([part[len(start) :][::-1] for part in parts])[::-1])
    return f"{start}*{end}" if "-" in start else ""


def _begin(names: Sequence[str]) -> str:
    """What all of these begin with."""
    return "".join(signs[0] for signs in takewhile(lambda signs: len({*signs}) == 1, zip(*names, strict=False)))


def folded(
    plans: Mapping[str, MemoryPlan | str], asked: Inquiry, stages: Mapping[str, str]
) -> dict[str, MemoryPlan | str]:
    """Plans of which the same is told, those of a sweep's runs of one stage, as one."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, planned in plans.items():
        told = [planned] if isinstance(planned, str) else [size(planned.peak.bytes), _peak(planned)]
        if not isinstance(planned, str) and asked.budget is not None:
            told += _verdict(planned, asked.budget, "")
        alike.setdefault((stages.get(name, ""), *told), []).append(name)
    called: dict[str, str] = {}
    for names in alike.values():
        for told_as, those in in_few(names, plans).items():
            called |= dict.fromkeys(those, told_as)
    return {called[name]: planned for name, planned in plans.items()}


def _peak(planned: MemoryPlan) -> str:
    """The phase of the peak, and its largest parts."""
    return f"{planned.peak.name}: " + " · ".join(f"{part.name} {size(part.bytes)}" for part in planned.largest())


def report(plans: dict[str, MemoryPlan | str], asked: Inquiry, stages: Mapping[str, str] | None = None) -> str:
    """A line or two per stage: peak, phase of the peak and its largest parts; with a budget, whether it fits and what
    would. Runs of a stage of which the same is told are one line.

    `plans`: name -> its plan, or why there is none; `stages`: the stage of a recipe that a name is a run of.
    """
    plans = folded(plans, asked, stages or {})
    longest = max(map(len, plans))
    width = longest if longest <= LONG else 2

    def begun(name: str, size: str, text: str) -> list[str]:
        above, head = ([], name) if longest <= LONG else ([name], "")
        return [*above, *_wrapped(f"{head:<{width}}  {size:>9}  ", text)]

    unknown = {name: begun(name, "?", why) for name, why in plans.items() if isinstance(why, str)}
    if len(unknown) == len(plans):
        return "\n".join(["memory", "", *chain.from_iterable(unknown.values())])
    known = [p.work.rows is not None for p in plans.values() if isinstance(p, MemoryPlan)]
    full = "packed rows full, sequences of max_length"
    rows = full
    if any(known):
        rows = "rows as in the data" if all(known) else f"rows as in the data where that is there, else {full}"
    processes = max((p.work.processes for p in plans.values() if isinstance(p, MemoryPlan)), default=1)
    each = f"of each of {processes} processes, " if processes > 1 else ""
    lines = [*_wrapped("", f"memory {each}{BASIS[asked.device]}"), f"{rows}; within 15 %", ""]
    for name, planned in plans.items():
        if isinstance(planned, str):
            lines += unknown[name]
            continue
        lines += begun(name, size(planned.peak.bytes), _peak(planned))
        if asked.budget is not None:
            lines += _verdict(planned, asked.budget, " " * (width + 2))
    kinds = {p.work.shape.kind for p in plans.values() if isinstance(p, MemoryPlan) and p.work.shape.is_estimate}
    lines += ["", *(f"{kind}: planned as if it were a Llama of these sizes" for kind in sorted(kinds))] if kinds else []
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> list[str]:
    """The text within the width behind a head; what goes on stands below its beginning."""
    below = " " * len(head)
    return textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
    )


def _verdict(planned: MemoryPlan, budget: int, indent: str) -> list[str]:
    if fits(planned, budget):
        spare = 1 - planned.peak.bytes / budget
        return _wrapped(f"{indent}{'fits':>9}  ", f"{size(budget)} with {spare:.0%} to spare")
    found = proposals(planned.work, budget)
    if not found:
        least = floor(planned.work)
        largest = " · ".join(f"{part.name} {size(part.bytes)}" for part in least.plan.largest(2))
        with_ = f" with {_words(least.settings)}" if least.settings else ""
        least_line = f"the least{with_} is {size(least.plan.peak.bytes)}, in {least.plan.peak.name}: {largest}"
        return [
            f"{indent}{'too large':>9}  for {size(budget)}",
            *_wrapped(indent + " " * 11, least_line),
        ]
    lines = _wrapped(f"{indent}{'too large':>9}  ", f"for {size(budget)} with {RESERVE:.0%} to spare; it fits with")
    for choice in found:
        lines += _wrapped(f"{indent}{size(choice.plan.peak.bytes):>21}  ", _words(choice.settings))
    return lines


def _words(settings: dict[str, object]) -> str:
    return " ".join(f"{key}={str(value).lower()}" for key, value in settings.items())


def as_json(plans: Mapping[str, MemoryPlan | str], asked: Inquiry) -> dict[str, Json]:
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
    return out
