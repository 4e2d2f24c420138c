"""What goes with what: every stage that trains, in every layout of its base, each held against plain copies.

`python -m tests.benchmarks.composes` runs whole stages of two steps on `data/tiny-base` in fp32 (about 20 minutes of
two cores), once an engine, and writes which artifacts were equal by digest into `results/composes.json` and into the
table of docs/scale.md; `--only ENGINE …` runs some again, `--table` writes and prints what was seen.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.ground.errors import InputError
from align.store import Store
from tests.conftest import ROOT, read_rows, write_rows, write_world

RESULTS = Path(__file__).with_name("results") / "composes.json"
PAGE, MARKS = ROOT / "docs/scale.md", ("<!-- composes -->\n", "\n<!-- /composes -->")
COMMON = {"precision": "fp32", "threads": 1, "max_steps": 2, "batch_size": 4, "max_length": 96}
SAMPLED = {"max_new_tokens": 4, "trust_reward": True}
ROLLED = {**SAMPLED, "parent": "sft", "reward": "reward", "data": "prompts", "rollout_size": 8}
PAIRS: dict[str, Any] = {"parent": "sft", "data": "pairs"}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"base": "base", "data": "sft"},
    "pretrain": {"base": "base", "data": "texts", "method": "lora"},
    "reward": {**PAIRS, "centre_samples": 4, "centre_max_new_tokens": 2},
    "dpo": PAIRS,
    "simpo": PAIRS,
    "cpo": PAIRS,
    "orpo": PAIRS,
    "kto": {"parent": "sft", "data": "labelled"},
    "bco": {"parent": "sft", "data": "labelled"},
    "distill": {"parent": "sft", "data": "sft", "teacher": "dpo"},
    "ppo": ROLLED,
    "grpo": {**ROLLED, "group_size": 4},
    "rloo": {**ROLLED, "group_size": 4},
    "reinforce_pp": {**ROLLED, "group_size": 2},
    "online_dpo": {**ROLLED, "group_size": 2},
}
"""Their settings, in an order in which each finds its inputs; data and base are named, and found by the worker."""


@dataclass(frozen=True)
class Engine:
    """A way for a base to lie on processes, and the plain one that it is held against."""

    title: str
    processes: int = 2
    settings: dict[str, Any] = field(default_factory=dict)
    quantize: str | None = None
    padded: bool = False
    """Whether rows take the padded path, as a base does whose attention mixes packed ones."""
    truth: str = ""


SHARD = {"parallel": "shard"}
OFFLOAD = {"base_offload": True}
AGAIN = {"activation_checkpointing": True}
ENGINES = {
    "one": Engine("one process", 1),
    "copies": Engine("copies"),
    "copies-4": Engine("copies, 4", 4),
    "copies-nf4": Engine("copies, NF4", quantize="nf4"),
    "copies-padded": Engine("copies, padded", padded=True),
    "shards": Engine("shards", settings=SHARD, truth="copies"),
    "shards-again": Engine("shards, `activation_checkpointing`", settings={**SHARD, **AGAIN}, truth="copies"),
    "shards-4": Engine("shards, 4 processes", 4, SHARD, truth="copies-4"),
    "shards-nf4": Engine("NF4 in shards", settings=SHARD, quantize="nf4", truth="copies-nf4"),
    "shards-padded": Engine("shards, padded rows", settings=SHARD, padded=True, truth="copies-padded"),
    "offload": Engine("`base_offload`", settings=OFFLOAD, truth="copies"),
    "offload-nf4": Engine("`base_offload`, NF4", settings=OFFLOAD, quantize="nf4", truth="copies-nf4"),
    "offload-one": Engine("`base_offload`, 1 process", 1, OFFLOAD, truth="one"),
}


def work(name: str, folder: Path) -> None:
    """Every stage in a row by one engine, in this process and the others of its run: what each came to."""
    engine = ENGINES[name]
    if engine.padded:
        from align.models import adapted

        adapted.probe = lambda tried: (False, "asked for")
    store, found = Store(folder / name), {}
    base = {"model": f"{ROOT}/data/tiny-base", "quantize": engine.quantize}
    for stage, given in STAGES.items():
        module = importlib.import_module(f"align.{stage}")
        settings = {**COMMON, **engine.settings, **given, "name": stage, "data": str(folder / f"{given['data']}.jsonl")}
        settings |= {"base": base} if "base" in given else {}
        if "method" in given:
            settings.pop("batch_size")
        try:
            found[stage] = module.run(module.Config(**settings), store).digest
        except InputError as error:  # what is refused is refused on all processes alike
            found[stage] = f"refused: {error}"
        except Exception:
            traceback.print_exc()
            raise
    (folder / f"{name}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


def measure(name: str, folder: Path) -> dict[str, str]:
    """What the stages of one engine came to. Raises: AssertionError where its processes do not agree."""
    engine = ENGINES[name]
    words = ["-m", __spec__.name, "--work", name, str(folder)]
    if engine.processes > 1:
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(engine.processes)]
        words = [*start, *words]
    more = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    with (folder / f"{name}.log").open("w") as log:
        subprocess.run([sys.executable, *words], env=os.environ | more, check=True, stderr=log, timeout=1800)
    said = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(engine.processes)]
    assert all(each == said[0] for each in said), said
    return dict(said[0])


def judged(digests: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """engine -> stage -> "equal", "differs", or "refused: why"."""
    out: dict[str, dict[str, str]] = {}
    for name, engine in ENGINES.items():
        if not engine.truth or name not in digests:
            continue
        truth = digests[engine.truth]
        for stage, digest in digests[name].items():
            same = "equal" if digest == truth.get(stage) else "differs"
            out.setdefault(name, {})[stage] = digest if digest.startswith("refused") else same
    return out


def table(found: dict[str, dict[str, str]]) -> str:
    """As Markdown: a row a stage, a column an engine."""
    columns = [name for name, engine in ENGINES.items() if engine.truth]
    lines = [
        f"| stage | {' | '.join(ENGINES[name].title for name in columns)} |",
        f"|---{'|---' * len(columns)}|",
    ]
    for stage in STAGES:
        cells = [found.get(name, {}).get(stage, "not run") for name in columns]
        short = ["refused" if cell.startswith("refused") else cell for cell in cells]
        lines.append(f"| `{stage}` | {' | '.join(short)} |")
    return "\n".join(lines)


def on_page(page: str) -> str:
    """The table that a page has."""
    return page.split(MARKS[0])[1].split(MARKS[1])[0]


def run(names: Sequence[str], folder: Path) -> None:
    write_world(folder)
    rows = read_rows(folder / "pairs.jsonl")
    labelled = [
        {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
        for row in rows
        for key in ("chosen", "rejected")
    ]
    write_rows(folder / "labelled.jsonl", labelled)
    digests = {}
    for name in names:
        digests[name] = measure(name, folder)
        print(name, digests[name], flush=True)
    seen = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(seen | judged(digests), indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.composes", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=ENGINES, metavar="ENGINE", help=", ".join(ENGINES))
    parser.add_argument("--table", action="store_true", help="write and print what was seen, and run nothing")
    parser.add_argument("--work", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work[0], Path(args.work[1]))
        return
    if not args.table:
        wanted = dict.fromkeys(args.only or ENGINES)
        names = [*dict.fromkeys(ENGINES[name].truth for name in wanted if ENGINES[name].truth), *wanted]
        with tempfile.TemporaryDirectory() as folder:
            run(list(dict.fromkeys(names)), Path(folder))
    shown = table(json.loads(RESULTS.read_text()))
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
    PAGE.write_text(before + MARKS[0] + shown + MARKS[1] + after, encoding="utf-8")
    print(shown)


if __name__ == "__main__":
    main()
