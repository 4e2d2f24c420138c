"""Which method when: each trained on the quickstart's world, and held against its SFT by the gold judge.  `python -m
tests.benchmarks.methods [--steps 144] [--seeds 0 1 2] [--only DPO KTO] [--sft_coef 0.2] [--threads 1] [--store DIR]
[--json FILE]`

Makes the recipe's `sft`, `pairs` and `reward` for each seed, trains every method from that SFT on those pairs (KTO on
their answers one by one, online DPO on the prompts by that reward, SFT on the best of eight answers by it, distillation
from the DPO that the table holds), samples answers of all of them to the held-out prompts, and prints a table for
docs/methods.md. What was done before is skipped.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import align
from align import best_of_n, evaluate, pipeline
from align.store import Artifact, Store

ROOT = Path(__file__).parents[2]
PAIRS, SINGLE, PROMPTS, BEST, TEACHER = "pairs", "labelled answers", "prompts", "the best of 8", "prompts of pairs"
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "DPO": ("dpo", PAIRS, {"beta": 0.3}),
    "conservative DPO": ("dpo", PAIRS, {"beta": 0.3, "label_smoothing": 0.1}),
    "robust DPO": ("dpo", PAIRS, {"beta": 0.3, "loss": "robust", "label_smoothing": 0.1}),
    "beta-DPO": ("dpo", PAIRS, {"beta": 0.3, "dynamic_beta": 0.6}),
    "IPO": ("dpo", PAIRS, {"beta": 1.0, "loss": "ipo"}),
    "DPO per token": ("dpo", PAIRS, {"beta": 6.0, "loss": "sigmoid_norm"}),
    "hinge": ("dpo", PAIRS, {"beta": 0.3, "loss": "hinge"}),
    "APO zero": ("dpo", PAIRS, {"beta": 0.3, "loss": "apo_zero"}),
    "NCA": ("dpo", PAIRS, {"beta": 0.3, "loss": "nca_pair"}),
    "SimPO": ("simpo", PAIRS, {}),
    "SimPO with likelihood": ("simpo", PAIRS, {"sft_coef": 1.0}),
    "AlphaPO with likelihood": ("simpo", PAIRS, {"sft_coef": 1.0, "alphapo_alpha": 0.25}),
    "CPO": ("cpo", PAIRS, {"beta": 0.3}),
    "ORPO": ("orpo", PAIRS, {}),
    "KTO": ("kto", SINGLE, {"beta": 0.3}),
    "BCO": ("bco", SINGLE, {"beta": 0.3}),
    "online DPO": ("online_dpo", PROMPTS, {"beta": 0.1, "batch_size": 64, "rollout_size": 64, "max_new_tokens": 24}),
    "best of 8": ("sft", BEST, {}),
    "distilled DPO": ("distill", TEACHER, {"beta": 0.0, "lmbda": 1.0, "max_new_tokens": 24}),
}
"""Name -> (stage, data, settings beside those that all share)."""
SHARED: dict[str, Any] = {"batch_size": 32, "learning_rate": 1e-3, "precision": "fp32"}


def label(method: str, beside: Mapping[str, float]) -> str:
    """What a method is called in the store, with the settings beside its own."""
    return "-".join([method.lower().replace(" ", "-"), *(f"{key}-{value}" for key, value in beside.items())])


def labelled(pairs: Artifact, store: Store, folder: Path) -> Path:
    """The answers of pairs one by one, chosen ones called good; those that were cut off are left out."""
    rows = [json.loads(line) for line in store.read(pairs, "data.jsonl").splitlines()]
    path = folder / f"labelled-{pairs.digest[:12]}.jsonl"
    sides = (("chosen", True), ("rejected", False))
    each = [
        {"prompt": row["prompt"], "completion": row[side], "label": good}
        for row in rows
        for side, good in sides
        if not row[f"{side}_cut"]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in each), encoding="utf-8")
    return path


def inputs(reads: str, made: dict[str, Artifact], store: Store, seed: int, asked: Any) -> dict[str, Any]:
    """What a method learns from: its data, and who says what is good. `asked`: the settings of the recipe's `pairs`."""
    if reads == PAIRS:
        return {"data": made["pairs"].digest}
    if reads == SINGLE:
        return {"data": str(labelled(made["pairs"], store, store.path))}
    if reads == PROMPTS:
        return {"data": asked.data, "reward": made["reward"].digest}
    if reads == TEACHER:
        return {"data": str(chosen(made["pairs"], store, store.path)), "teacher": f"methods-{seed}/dpo"}
    config = best_of_n.Config(
        name=f"methods-{seed}/best",
        parent=made["sft"].digest,
        reward=made["reward"].digest,
        data=asked.data,
        seed=seed,
        n=8,
        max_new_tokens=asked.max_new_tokens,
        precision="fp32",
        threads=asked.threads,
    )
    return {"data": best_of_n.run(config, store).digest}


def chosen(pairs: Artifact, store: Store, folder: Path) -> Path:
    """The chosen answers of pairs as demonstrations."""
    rows = [json.loads(line) for line in store.read(pairs, "data.jsonl").splitlines()]
    path = folder / f"chosen-{pairs.digest[:12]}.jsonl"
    each = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows if not row["chosen_cut"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in each), encoding="utf-8")
    return path


def train(
    seed: int,
    methods: Sequence[str],
    steps: int,
    threads: int,
    store: Store,
    recipe: Path,
    beside: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Method -> its gold win rate over SFT with both ends of the interval, and its KL from SFT in nats per answer.
    `beside`: settings of `dpo` beside those of each method."""
    names = {m: label(m, beside if METHODS[m][0] == "dpo" else {}) for m in methods}
    loaded = pipeline.load(recipe, [f"name=methods-{seed}", f"seed={seed}", f"threads={threads}"])
    by_reward = {PROMPTS, BEST} & {METHODS[method][1] for method in methods}
    made = align.run(loaded, store, until="reward" if by_reward else "pairs")
    for method in methods:
        stage, reads, settings = METHODS[method]
        module = importlib.import_module(f"align.{stage}")
        given = {
            **SHARED,
            **settings,
            **(beside if stage == "dpo" else {}),
            "threads": threads,
            "parent": made["sft"].digest,
            "max_steps": steps,
            **inputs(reads, made, store, seed, loaded.stages["pairs"].config),
        }
        module.run(module.Config(name=f"methods-{seed}/{names[method]}", seed=seed, **given), store)
    report: Any = loaded.stages["report"].config
    compared = evaluate.run(
        evaluate.Config(
            name=f"methods-{seed}/{label('report', beside)}",
            seed=seed,
            compare=[f"methods-{seed}/sft", *(f"methods-{seed}/{name}" for name in names.values())],
            include_base=False,
            data=report.data,
            judges={"gold": report.judges["gold"]},
            n=4,
            max_new_tokens=report.max_new_tokens,
            precision="fp32",
            threads=threads,
        ),
        store,
    )
    found = {}
    for method in methods:
        key = f"{names[method]}/win_rate_vs_sft"
        low, high = compared.metrics[f"{key}_ci95"]
        kl = compared.metrics.get(f"{names[method]}/kl", float("nan"))
        found[method] = {"win rate": compared.metrics[key], "low": low, "high": high, "kl": kl}
    return found


def table(seeds: dict[int, dict[str, dict[str, float]]]) -> str:
    """Mean over seeds, then each of them."""
    lines = ["| method | stage | data | gold win rate over SFT | by seed | KL |", "|---|---|---|---|---|---|"]
    for method in next(iter(seeds.values())):
        stage, data, settings = METHODS[method]
        each = [found[method] for found in seeds.values()]
        rates = [row["win rate"] for row in each]
        said = " ".join(f"{key}: {value}" for key, value in settings.items())
        by_seed = ", ".join(f"{rate:.2f}" for rate in rates)
        kl = fmean(row["kl"] for row in each)
        lines.append(f"| {method} | `{stage}` {said} | {data} | **{fmean(rates):.2f}** | {by_seed} | {kl:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/quickstart.yaml")
    parser.add_argument("--steps", type=int, default=144)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--sft_coef", type=float, help="of all methods of dpo, beside what each has")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--store")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    store = Store(args.store)
    beside = {"sft_coef": args.sft_coef} if args.sft_coef else {}
    given = (args.steps, args.threads, store, args.recipe, beside)
    found = {seed: train(seed, args.only, *given) for seed in args.seeds}
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
