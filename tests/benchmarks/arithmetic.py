"""GRPO and RLOO on the quickstart's arithmetic, with a reward that can be checked:  `python -m
tests.benchmarks.arithmetic [--seeds 0 1 2] [--stages grpo grpo-cispo]`

The world has 25 sums (1 to 5 plus 1 to 5), asked in three ways, with or without a greeting and a persona. From the
shipped base an SFT start is made of the world's demonstrations of sums, which are right half of the time; then `grpo`
and `rloo` train on prompts with nothing but `data/gold.py:correctness` as reward. What is measured is the share of
correct answers at temperature 1, before and after, with a 95 % interval (over prompts), on two held-out sets:

    prompts   prompts that the world holds out, of the 20 sums that training asks about in other words
    sums      any prompts about the other 5 sums, which neither SFT nor RL ever asks about (the base has read all 25)

The figure is the gain on held-out prompts. That on held-out sums says how much of it is a habit of answering right, and
not these sums.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import align
from align import judges
from align.data.formats import read_prompts
from align.generate import STAGE as SAMPLING
from align.generate import Config
from align.measures.intervals import share_interval
from align.sampling.answers import sample
from align.stage import on_base
from align.stage.question import prepare
from align.stage.workbench import Workbench
from align.store import Store

ROOT = Path(__file__).parents[2]
GOLD = f"{ROOT / 'data/gold.py'}:correctness"
LONGEST = 24
SFT: dict[str, Any] = {"epochs": 1.0, "batch_size": 32, "learning_rate": 1e-3}
SHARED: dict[str, Any] = {
    "rollout_size": 128,
    "batch_size": 64,
    "max_steps": 80,
    "learning_rate": 1e-3,
    "max_new_tokens": LONGEST,
}
STAGES: dict[str, dict[str, Any]] = {
    "grpo": {"group_size": 8, "rollout_epochs": 2, "kl_coef": 0.01},
    "rloo": {"group_size": 8, "rollout_epochs": 2, "kl_coef": 0.01},
}
"""Settings beside the defaults, found on seed 0."""
LOSSES: dict[str, dict[str, Any]] = {
    "grpo-cispo": {"loss": "cispo", "clip_high": 4.0, "normalise": "token"},
    "grpo-sapo": {"loss": "sapo"},
    "grpo-vespo": {"loss": "vespo", "normalise": "token"},
    "grpo-gmpo": {"loss": "gmpo", "clip": 0.4},
    "grpo-luspo": {"ratio": "sequence", "normalise": "sum", "clip": 2e-3, "clip_high": 2.5e-3},
}
"""GRPO with another loss, its settings those of its paper, or TRL's; else as above."""
STAGES |= {name: STAGES["grpo"] | changes for name, changes in LOSSES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of data and training")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=["grpo", "rloo"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--answers", type=int, default=4, help="sampled to each held-out prompt")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    everything = {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            everything[seed] = measured = run(Path(folder), seed, args.stages, args.threads, args.answers)
        for name, row in measured.items():
            print(
                f"seed {seed}  {name:10} " + "  ".join(f"{key} {shown(value)}" for key, value in row.items()),
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:.1%} ({value[1]:.1%} to {value[2]:.1%})"
    return f"{value:+.1%}" if abs(value) <= 1 else f"{value:.0f}"


def run(
    folder: Path,
    seed: int,
    stages: list[str],
    threads: int,
    answers: int,
    sft: dict[str, Any] = SFT,
    shared: dict[str, Any] = SHARED,
) -> dict[str, dict[str, Any]]:
    """Data, SFT, the RL stages, and how many answers of each are right."""
    write_sums(folder, seed)
    store = Store(folder / "store")
    common = {"seed": seed, "threads": threads, "precision": "fp32"}
    given = {"base": str(ROOT / "data/tiny-base"), "data": folder / "demos.jsonl", "name": "sft"}
    align.sft.run(align.sft.Config.model_validate({**given, **common, **sft}), store)
    found = {"sft": right_answers(store, "sft", folder, answers, common)}
    for stage in stages:
        start, module = time.monotonic(), importlib.import_module(f"align.{stage.partition('-')[0]}")
        settings = {"parent": "sft", "data": folder / "prompts.jsonl", "judges": {"right": GOLD}, "name": stage}
        module.run(module.Config(**settings, **common, **shared, **STAGES[stage]), store)
        seconds = time.monotonic() - start
        row = right_answers(store, stage, folder, answers, common)
        found[stage] = {**row, "gain": row["prompts"][0] - found["sft"]["prompts"][0], "seconds": seconds}
    return found


def right_answers(store: Store, name: str, folder: Path, n: int, common: dict[str, Any]) -> dict[str, Any]:
    """Per held-out set the share of right answers with its interval."""
    found, score = {}, judges.load(GOLD)
    for kind in ("prompts", "sums"):
        data = str(folder / f"heldout-{kind}.jsonl")
        config = Config(parent=name, data=data, n=n, max_new_tokens=LONGEST, **common)
        bench = Workbench(prepare(SAMPLING, config, store))
        prompts, renderer, roles = list(read_prompts(data)), bench.load_renderer(), bench.load_base()
        on_base.add_reference(bench, roles)
        sampled = sample(roles, "reference", renderer, renderer.prompt_ids(prompts), config, n)
        shares = []
        for prompt, several in zip(prompts, sampled, strict=True):
            right = score([prompt] * n, [answer["text"] for answer in several])
            shares.append(sum(value or 0.0 for value in right) / n)
        found[kind] = (sum(shares) / len(shares), *share_interval(shares))
    return found


# ---- data ------------------------------------------------------------------------------------------------------------


def load_world() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart_world", ROOT / "data/world.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_sums(folder: Path, seed: int, demos: int = 1000, prompts: int = 600, held_out: int = 150) -> None:
    """demos.jsonl and prompts.jsonl over 20 sums; heldout-prompts.jsonl over the same, heldout-sums.jsonl over the
    other 5."""
    world, rng = load_world(), Random(f"{seed}/arithmetic")
    every = [(a, b) for a in range(1, 6) for b in range(1, 6)]
    kept = set(rng.sample(every, 5))

    def asked(text: str) -> tuple[int, int]:
        a, b = (int(word.strip("?.")) for word in text.split() if word.strip("?.").isdigit())
        return a, b

    def questions(sums: bool, held: bool | None) -> Iterator[Any]:
        """Endless prompts, none twice, about sums that are held out or not, from one side of the world's own split or
        (None) either."""
        seen: set[tuple[str | None, str]] = set()
        while True:
            q = world.ask(rng, "sum")
            if (asked(q.text) in kept) == sums and held in (None, q.held_out) and (q.system, q.text) not in seen:
                seen.add((q.system, q.text))
                yield q

    def take(count: int, source: Iterator[Any]) -> Iterator[Any]:
        return (q for q, _ in zip(source, range(count), strict=False))

    training = questions(sums=False, held=False)
    world.write(
        folder / "demos.jsonl",
        ({"prompt": q.messages, "completion": world.demonstration(q, rng)} for q in take(demos, training)),
    )
    world.write(folder / "prompts.jsonl", map(world.row, take(prompts, training)))
    world.write(folder / "heldout-prompts.jsonl", map(world.row, take(held_out, questions(sums=False, held=True))))
    world.write(folder / "heldout-sums.jsonl", map(world.row, take(held_out, questions(sums=True, held=None))))


if __name__ == "__main__":
    main()
