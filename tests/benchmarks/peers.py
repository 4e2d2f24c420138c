"""How fast, and in how much memory, beside TRL's trainers: `python -m tests.benchmarks.peers --stages sft reward dpo
--json peers.json`

Both sides train in turn, each run in a fresh process, on the same rows (checked: the same number of tokens), the same
model, LoRA r=16 on all linear layers, the same records per optimizer step, one epoch (`--epochs`). The model is a Llama
(hidden 256, 6 layers, vocabulary 4096, random weights, a tokenizer trained on the rows), or with `--model DIR` any
base; both compute in fp32, or in what `--precision` lists (bf16: weights in bf16, adapters in fp32, on both sides).
Ours is the real stage, from its data file to a committed artifact. `--layers K` adapts the top K layers on our side, so
that those below run once per row, and adds a run of ours with all layers adapted: what that alone brings.

Measured per row after two warm-up steps by one callback on both sides: CPU time of the process and wall time. Memory:
peak resident memory minus resident memory after imports, before the model loads (CUDA: peak allocated). Columns:

  plain   TRL without checkpointing. DPO: TRL computes the reference in every step; our reference pass is added to our
          time. So is, with --layers, the pass over the layers that run once.
  best    TRL's fastest of plain, length grouping (SFT) and cached reference (DPO), measured. With a cached reference
          neither side's reference pass counts. TRL's packing is left out: it keeps rows apart only with FlashAttention,
          which CPUs lack, and its reward and DPO trainers refuse length grouping.

KTO trains on one answer of each row, good and bad ones by turns; ORPO's peer is in trl.experimental. RLOO
samples four answers to each prompt, of --new-tokens, and is timed as a whole.

PPO's peer is TRL 1.12, the last release that has it; it is installed beside the same torch and transformers, in this
environment's peers/ folder, and timed from the first rollout to the last step.

Rows come from --pairs (any preference file that Align reads), or are generated with the lengths of Anthropic HH:
log-normal, in tokens of a 4096-entry BPE over 1,800 rows of hh-rlhf "harmless": prompt median 100, chosen 29, rejected
38.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tests.benchmarks.peers_plot import draw

ROOT = Path(__file__).parents[2]
VARIANTS = {
    "sft": ("plain", "grouped"),
    "reward": ("plain",),
    "dpo": ("plain", "cached"),
    "kto": ("plain",),
    "orpo": ("plain",),
    "ppo": ("plain",),
    "rloo": ("plain",),
}
JUDGE = """def score(completions, **columns):
    return [float(len(set(text))) for text in completions]
"""
"""RLOO's reward: how many different characters an answer has."""
LOG_LENGTHS = {"prompt": (4.436, 1.0), "chosen": (3.36, 0.954), "rejected": (3.573, 0.996)}
"""Mean and standard deviation of log tokens in Anthropic HH "harmless" (arXiv 2204.05862)."""
PPO_PEER = "trl==1.12.*"
Row = dict[str, str]


# ---- rows and model --------------------------------------------------------------------------------------------------


def words(n: int, draw: np.random.Generator) -> list[str]:
    """Distinct made-up words, one token each once the tokenizer has seen them."""
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u")]
    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(draw.choice(syllables, draw.integers(1, 4)))] = None
    return list(found)


def generated_rows(n: int, seed: int = 0, log_lengths: dict[str, tuple[float, float]] = LOG_LENGTHS) -> list[Row]:
    """Rows of made-up words with HH-like or other lengths."""
    draw = np.random.default_rng(seed)
    vocabulary = np.array(words(1000, draw))
    shares = 1 / np.arange(1, len(vocabulary) + 1)  # Zipf
    rows = []
    for _ in range(n):
        lengths = {k: max(1, round(float(np.exp(draw.normal(mean, std))))) for k, (mean, std) in log_lengths.items()}
        text = {
            k: "".join(f" {w}" for w in draw.choice(vocabulary, length, p=shares / shares.sum()))
            for k, length in lengths.items()
        }
        rows.append(text)
    return rows


def rows_from(path: Path) -> list[Row]:
    """Preference rows as plain text, so that both sides render them alike."""
    from align.data.formats import read_preferences

    rows = []
    for record in read_preferences(path):
        turns = "\n\n".join(f"{m.role.capitalize()}: {m.content}" for m in record.prompt)
        chosen, rejected = ("\n".join(m.content for m in side) for side in (record.chosen, record.rejected))
        rows.append({"prompt": f"{turns}\n\nAssistant:", "chosen": f" {chosen}", "rejected": f" {rejected}"})
    return rows


def make_tokenizer(rows: list[Row], folder: Path, max_length: int) -> Any:
    """A tokenizer of 4,096 entries trained on the rows."""
    from align.rendering.tokenizer import train_tokenizer

    tokenizer = train_tokenizer([text for row in rows for text in row.values()], 4096, max_length)
    tokenizer.bos_token = None  # Align's plain template would open with it, TRL would not
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_model(rows: list[Row], folder: Path, max_length: int) -> None:
    """A Llama with random weights and a tokenizer trained on the rows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(rows, folder, max_length)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=max_length,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def that_fit(rows: list[Row], model: Path, wanted: int, max_length: int, new_tokens: int) -> list[Row]:
    """The first `wanted` rows that no side would have to cut."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    kept = []
    for row in rows:
        lengths = {k: len(tokenizer(text)["input_ids"]) for k, text in row.items()}
        # a few tokens to spare: joined text may be cut into other tokens
        if lengths["prompt"] + max(lengths["chosen"], lengths["rejected"], new_tokens) + 8 <= max_length:
            kept.append(row)
        if len(kept) == wanted:
            return kept
    raise SystemExit(
        f"{len(kept)} of {len(rows)} rows fit into {max_length} tokens, {wanted} are wanted: lower --rows or raise "
        "--max-length."
    )


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_data(rows: list[Row], folder: Path) -> None:
    """The same rows for TRL and, per stage, for Align; the two held-out rows are there because a stage wants some,
    outside the clock."""
    write(folder / "rows.jsonl", rows)
    shaped: dict[str, list[dict[str, Any]]] = {
        "sft": [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows],
        "reward": rows,
        "dpo": rows,
        "kto": [
            {"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"}
            for r, side in zip(rows, cycle(("chosen", "rejected")), strict=False)
        ],
        "orpo": rows,
        "ppo": [{"prompt": r["prompt"]} for r in rows],
        "rloo": [{"prompt": r["prompt"]} for r in rows],
    }
    (folder / "judge.py").write_text(JUDGE, encoding="utf-8")
    for stage, data in shaped.items():
        write(folder / f"{stage}.jsonl", data)
        write(folder / f"{stage}.eval.jsonl", data[:2])


# ---- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Worker:
    """How to start one side: a module, and what comes first on its path."""

    module: str
    path: tuple[Path, ...] = ()

    def run(self, job: dict[str, Any], threads: int) -> dict[str, Any]:
        """One run in a fresh process; its figures."""
        with tempfile.TemporaryDirectory(dir=job["shared"]) as scratch:
            folder = Path(scratch)
            for source in (*Path(job["shared"]).glob("*.jsonl"), Path(job["shared"], "judge.py")):
                (folder / source.name).hardlink_to(source)
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, (*self.path, ROOT))),
                "OMP_NUM_THREADS": str(threads),
                "HF_HUB_OFFLINE": "1",
                "HF_DATASETS_CACHE": str(folder / "cache"),
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONWARNINGS": "ignore",
            }
            payload = json.dumps({**job, "folder": str(folder), "rows": str(folder / "rows.jsonl")})
            done = subprocess.run(
                [sys.executable, "-m", self.module, payload], cwd=ROOT, env=environment, capture_output=True, text=True
            )
        if done.returncode:
            raise SystemExit(f"{self.module} failed on {job['stage']} ({job['variant']}):\n{done.stderr[-4000:]}")
        return dict(json.loads(done.stdout.splitlines()[-1]))


def ppo_peer() -> Path:
    """Folder with TRL 1.12, installed on first use. It shadows the newer TRL; every other library is shared."""
    folder = Path(sys.prefix) / "peers" / "trl-1.12"
    if not (folder / "trl").is_dir():
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), PPO_PEER],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(
                f"--stages ppo: {PPO_PEER}, the last TRL with PPO, could not be installed into "
                f"{folder}:\n{done.stderr[-1500:]}\n"
                "Give pip a package index that has it, or leave ppo out of --stages."
            )
    return folder


def measure(
    stage: str, job: dict[str, Any], threads: int, repeats: int, alone: bool, plainly: bool
) -> list[dict[str, Any]]:
    """Peer (unless `alone`) and ours in turn, every variant of the peer (or with `plainly` its plain one), `repeats`
    times."""
    sides = {} if alone else {"trl": Worker("tests.benchmarks.trl_worker", (ppo_peer(),) if stage == "ppo" else ())}
    sides["align"] = Worker("tests.benchmarks.align_worker")
    wanted = [(side, variant, job) for variant in VARIANTS[stage][: 1 if alone or plainly else None] for side in sides]
    if job["layers"]:
        wanted.append(("align", "all layers", {**job, "layers": None}))
    runs = []
    for side, variant, asked in wanted * repeats:
        figures = sides[side].run({**asked, "stage": stage, "variant": variant}, threads)
        runs.append(
            {"stage": stage, "side": "all layers" if variant == "all layers" else side, "variant": variant, **figures}
        )
        seen = f"{figures['cpu_ms_per_row']:,.0f} ms CPU per row, {figures['memory_mib']:,.0f} MiB"
        print(f"  {stage} {job['precision']} {side} {variant}: {seen}", file=sys.stderr, flush=True)
    tokens = {run["sequence_tokens"] for run in runs}
    if len(tokens) != 1:
        raise SystemExit(
            f"{stage}: the sides read the rows as different numbers of tokens ({tokens}); the comparison would mean "
            "nothing."
        )
    return runs


def compare(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Columns plain and best of one stage."""

    def middle(side: str, key: str, variant: str | None = None) -> float:
        return median(r.get(key, 0.0) for r in runs if r["side"] == side and variant in (None, r["variant"]))

    variants = list(dict.fromkeys(r["variant"] for r in runs if r["side"] == "trl"))
    fastest = min(variants, key=lambda v: middle("trl", "cpu_ms_per_row", v))
    columns = {}
    for column, variant in (("plain", "plain"), ("best", fastest)):
        figures: dict[str, Any] = {"variant": variant}
        for clock in ("cpu", "wall"):
            theirs, ours = (
                middle(side, f"{clock}_ms_per_row", variant if side == "trl" else None) for side in ("trl", "align")
            )
            ours += middle("align", f"kept_{clock}_ms_per_row")
            if variant != "cached":
                ours += middle("align", f"reference_{clock}_ms_per_row")
            figures |= {
                f"{clock}_ratio": theirs / ours,
                f"trl_{clock}_ms_per_row": theirs,
                f"align_{clock}_ms_per_row": ours,
            }
        memory = {side: middle(side, "memory_mib", variant if side == "trl" else None) for side in ("trl", "align")}
        figures |= {
            "memory_ratio": memory["align"] / memory["trl"],
            **{f"{side}_memory_mib": m for side, m in memory.items()},
        }
        columns[column] = figures
    return columns


def top_layers(runs: list[dict[str, Any]]) -> dict[str, float]:
    """CPU ms per row of ours with all layers adapted over those with the top ones: in all, and in optimizer steps
    alone."""
    found: dict[str, float] = {}
    for what, parts in {"in all": ("cpu", "kept_cpu", "reference_cpu"), "in optimizer steps": ("update_cpu",)}.items():
        everything, top = (
            median(sum(r.get(f"{p}_ms_per_row", 0.0) for p in parts) for r in runs if r["side"] == side)
            for side in ("all layers", "align")
        )
        found |= {f"all layers, {what}": everything, f"top layers, {what}": top, f"ratio, {what}": everything / top}
    return found


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [
        f"{'stage':12}{'peer':14}{'cpu_ratio':>10}{'wall_ratio':>11}{'memory_ratio':>13}   "
        f"{'CPU ms/row':>16}{'wall ms/row':>18}{'memory MiB':>16}   (TRL / Align)"
    ]
    for stage, columns in results.items():
        for column, c in columns.items():
            name = column if c["variant"] == column else f"{column} ({c['variant']})"
            raw = [
                f"{c[f'trl_{k}']:.0f} / {c[f'align_{k}']:.0f}"
                for k in ("cpu_ms_per_row", "wall_ms_per_row", "memory_mib")
            ]
            ratios = f"{c['cpu_ratio']:9.2f}x{c['wall_ratio']:10.2f}x{c['memory_ratio']:12.2f}x"
            lines.append(f"{stage:12}{name:14}{ratios}   {raw[0]:>16}{raw[1]:>18}{raw[2]:>16}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stages", nargs="+", choices=VARIANTS, default=["sft", "reward", "dpo"])
    parser.add_argument("--pairs", type=Path, help="preference rows; without it they are generated")
    parser.add_argument(
        "--model",
        type=Path,
        help="a base to train in place of the small random one: a folder in the Hugging Face layout",
    )
    parser.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32"], help="what both sides compute in, in turn"
    )
    parser.add_argument(
        "--plain", action="store_true", help="leave out TRL's faster variants (length grouping, cached reference)"
    )
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8, help="records per optimizer step")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the rows of sft, reward and dpo")
    parser.add_argument("--layers", type=int, help="adapt the top layers alone, on our side")
    parser.add_argument(
        "--ours",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of our side's stages, such as activation_checkpointing=true",
    )
    parser.add_argument(
        "--alone", action="store_true", help="leave TRL out: with --layers, what that brings on our side"
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="times that every pair of runs is made; medians are shown"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--new-tokens", type=int, default=48, help="tokens that PPO samples per prompt")
    parser.add_argument("--json", type=Path, help="write ratios, raw figures and versions here")
    parser.add_argument("--plot", type=Path, help="draw the ratios here, as .svg, .png or .pdf")
    args = parser.parse_args()
    if args.rows % args.batch or args.rows < 3 * args.batch:
        parser.error(
            f"--rows must be a multiple of --batch ({args.batch}), at least three times it: two steps warm up."
        )
    with tempfile.TemporaryDirectory() as scratch:
        shared = Path(scratch)
        rows = rows_from(args.pairs) if args.pairs else generated_rows(2 * args.rows + 20)
        model = args.model.resolve() if args.model else shared / "model"
        if not args.model:
            make_model(rows, model, args.max_length)
        rows = that_fit(rows, model, args.rows, args.max_length, args.new_tokens)
        write_data(rows, shared)
        job = {
            "shared": str(shared),
            "model": str(model),
            "batch": args.batch,
            "max_length": args.max_length,
            "new_tokens": args.new_tokens,
            "epochs": args.epochs,
            "layers": args.layers,
            "ours": {key: json.loads(value) for key, _, value in (given.partition("=") for given in args.ours)},
        }
        runs = {}
        for precision in args.precision:
            for stage in args.stages:
                name = stage if precision == "fp32" else f"{stage} {precision}"
                runs[name] = measure(
                    stage, {**job, "precision": precision}, args.threads, args.repeats, args.alone, args.plain
                )
    results = {} if args.alone else {stage: compare(r) for stage, r in runs.items()}
    if results:
        print(table(results))
        if args.plot:
            draw(results, args.plot)
    ours = {stage: top_layers(r) for stage, r in runs.items()} if args.layers else {}
    for stage, figures in ours.items():
        for what in ("in all", "in optimizer steps"):
            raw = f"{figures[f'all layers, {what}']:.0f} / {figures[f'top layers, {what}']:.0f} ms CPU per row"
            print(
                f"{stage}: Align with all layers / the top {args.layers}, {what}: {raw}, "
                f"{figures[f'ratio, {what}']:.2f}x"
            )
    if args.json:
        machine = {
            "cpus": os.cpu_count(),
            "threads": args.threads,
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
        setting = {
            "rows": args.rows,
            "batch": args.batch,
            "pairs": str(args.pairs) if args.pairs else "generated",
            "repeats": args.repeats,
        }
        setting |= {
            "epochs": args.epochs,
            "layers": args.layers,
            "ours": args.ours,
            "model": model.name if args.model else "random",
        }
        args.json.write_text(
            json.dumps(
                {"setting": setting, "machine": machine, "results": results, "top_layers": ours, "runs": runs}, indent=2
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
