"""A stage's own command line: `python -m align.X`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable

from align import memory
from align.ground import ranks
from align.ground.progress import Work
from align.ground.terminal import ANEW, GOES_ON, guarded, print_result, prose, say
from align.recipe import StageConfig, TrainConfig, parse_flags
from align.report.text import result_text
from align.stage.ahead.dry_run import for_programs, memory_plan, plan, verdict
from align.stage.describe import C, Stage
from align.store import Artifact, Store


def main(stage: Stage[C], run: Callable[[C, Store], Artifact], doc: str | None) -> None:
    """`python -m align.X`: flags are the recipe's keys. Progress on stderr; stdout is `NAME DIGEST` (`--json`:
    manifest), of a report below its table."""

    def body() -> None:
        parsed = parse_flags(stage.config, sys.argv[1:], prog=f"align {stage.name}", doc=doc or "")
        asked = memory.Inquiry.asked(parsed.memory, parsed.device, parsed.dry_run)
        store = Store(parsed.config.store)
        if parsed.dry_run:
            with Work(stage.name):
                planned = plan(stage, parsed.config, store)
                before = store.sound_refs().get(planned.title)
                if before and not (planned.done and planned.done.digest == before):
                    planned.notes.append(f"the name points at {before[:12]}, and will at what this makes")
                found = memory_plan(stage, parsed.config, store, asked, planned.looked)
            if parsed.json:
                print(for_programs({planned.title: verdict(planned.done, planned.why)}, found, asked))
            elif stage.footprint is None and asked.budget is None:  # no table of one row that holds nothing
                with prose():
                    print(planned)
            else:
                with prose():
                    print(f"{planned}\n\n{memory.report(found, asked)}")
            return
        artifact = run(parsed.config, store)
        if not ranks.is_first():
            return
        name = parsed.config.name or stage.name
        line = f"{name} {artifact.digest}"
        text = f"{result_text(store, artifact)}\n\n{line}" if artifact.kind == "report" else line
        print_result(
            _json({**artifact.manifest, "digest": artifact.digest}) if parsed.json else text,
            f"The artifact is made: {line}",
        )
        there = f" (with{store.flag})" if store.flag else ""
        say(next_command(name, artifact, stage.feeds, started_from(parsed.config)) + there)

    guarded(body, GOES_ON if issubclass(stage.config, TrainConfig) else ANEW)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True)


def started_from(config: StageConfig) -> str:
    """The flag that says what a stage started from."""
    parent, base = getattr(config, "parent", None), getattr(config, "base", None)
    return f"--base {shlex.quote(base.model)}" if base else f"--parent {parent or 'SFT'}"


def next_command(name: str, artifact: Artifact, feeds: str, start: str) -> str:
    """What one would usually do next; data, and rewards, are for what they came of, which `start` names."""
    taken = f"python -m align.{feeds} {start} --data {name}"
    if not feeds:
        taken = f"align data inspect {name}, or --data {name} at a stage that trains on it"
    then = f"python -m align.evaluate --compare {name} --data prompts.jsonl --judges.NAME FILE.py:FUNCTION"
    if feeds:
        then = f"python -m align.{feeds} --parent {name} --data pairs.jsonl"
    return {
        "model": f"next: python -m align.sft --parent {name} --data FILE, or align chat {name}",
        "adapter": f"next: {then}, or align chat {name}, or python -m align.merge {name} --out DIR",
        "reward": f"next: python -m align.ppo {start} --reward {name} --data prompts.jsonl, or python -m "
        f"align.merge {name} --out DIR",
        "classifier": f"next: align checkout {name} DIR, or align show {name} for the code that loads it",
        "data": f"next: {taken}",
        "report": f"next: align checkout {name} DIR && python -m webbrowser DIR/report.html",
    }[artifact.kind]
