"""Which prompts reinforcement learning trained on: noted by its stages, so that no figure is measured on them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from align.data import split
from align.data.records import Prompt
from align.data.split import opening
from align.ground.errors import InputError
from align.store import Artifact, Store
from align.store.artifact import Lineage

STAGES = ("ppo", "grpo", "rloo", "reinforce_pp")
FILE = "trained_on.jsonl"
"""In the artifact of every stage of reinforcement learning: `opening` of each prompt that it answered in training."""


def note(folder: Path, prompts: Iterable[Prompt]) -> None:
    lines = sorted({json.dumps(opening(prompt)) for prompt in prompts})
    (folder / FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def leave_out(
    store: Store, artifacts: Iterable[Artifact], prompts: list[Prompt], drop: bool
) -> tuple[list[Prompt], list[str]]:
    """The prompts that neither `artifacts` nor what they were made from was trained on, and what is to be said of the
    others.

    Raises: InputError for another one, unless they are to be dropped, and where none is left.
    """
    line = list({node.digest: node for artifact in artifacts for node in _line(store.lineage(artifact))}.values())
    unknown = dict.fromkeys(store.label(node) for node in line if node.stage in STAGES and FILE not in node.files)
    notes = [f"{name} does not say which prompts it was trained on; some may be among these" for name in unknown]
    before = {
        o: node for node in line if FILE in node.files for o in map(json.loads, store.read(node, FILE).splitlines())
    }
    kept, seen = split.leave_out(prompts, before)
    if not seen:
        return prompts, notes
    by, many = store.label(before[opening(seen[0])]), f"{len(seen):,} of {len(prompts):,}"
    if kept and drop:
        return kept, [*notes, f"{many} prompts were left out: {by} was trained on them"]
    remedy = "Take others, or set `trained_on: drop` to leave such prompts out" if kept else "Take others"
    raise InputError(
        f"{seen[0].where}: {by} was trained on this prompt, one of {many} here, so what it answers says little of "
        f"other prompts. {remedy}; `hold_out` in training keeps prompts for measuring."
    )


def _line(node: Lineage) -> Iterator[Artifact]:
    yield node.artifact
    for before in [*node.parents.values(), *([node.base] if node.base else [])]:
        yield from _line(before)
