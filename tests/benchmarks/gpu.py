"""How near to the hardware, in how much memory, and beside TRL: `python -m tests.benchmarks.gpu`

A Llama-3.1-8B with random weights, in bf16 and in NF4, made on the device: nothing is downloaded and no weights are
written. Rows with the lengths of Anthropic HH ("hh") and long ones ("long"), LoRA r=16 on all linear layers. Every run
is a fresh process; TRL 1.16 trains in the same run on the same rows (checked: the same number of tokens), model, LoRA
and records per optimizer step, with and without activation checkpointing as ours does. TRL has no PPO. Ours is the
stage's settings and losses on the core that stages run on, without the stage's reading of weights and its commit, which
want a model folder. After two warm-up steps (PPO: after the first rollout):

  tokens/s   packed tokens, a shared prompt once; PPO: of the updates, with seconds of rollout and update beside it
  of peak    FLOPs (4 per frozen weight and 6 per adapter weight for each packed token, 4 per weight of the head for
             each token that counts, attention; recompute not counted; DPO with its pass over the reference) over the
             fastest matrix product measured in the same process
  peak GiB   `torch.cuda.max_memory_allocated`, weights among it (on a CPU: peak resident memory beyond what imports
      take)
  vs TRL     rows per second, ours over TRL's: DPO's reference pass is counted on both sides

On a CPU it runs with a small shape, to see that it works: --layers 2 --hidden 64 … Not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks import random_model
from tests.benchmarks.peers import LOG_LENGTHS, Row, Worker, generated_rows, make_tokenizer, that_fit, write_data

RESULTS = Path(__file__).parent / "results"
STAGES = ("sft", "reward", "dpo", "ppo")
LENGTHS = {"hh": LOG_LENGTHS, "long": {"prompt": (7.3, 0.3), "chosen": (6.2, 0.4), "rejected": (6.2, 0.4)}}
"""Mean and standard deviation of log tokens; "long" has medians of 1,480, 493 and 493."""
TARGETS = (
    ("SFT, bf16: share of the matmul peak", "sft", "bf16", "share_of_peak", lambda x: x >= 0.55, "≥ 55 %"),
    ("DPO, bf16: rows per second over TRL's", "dpo", "bf16", "over_trl", lambda x: x >= 2.5, "≥ 2.5 ×"),
    ("PPO, NF4: peak memory", "ppo", "nf4", "peak_bytes", lambda x: x <= 24 << 30, "≤ 24 GiB"),
)
LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")


def shape_of(args: argparse.Namespace) -> dict[str, Any]:
    """Llama-3.1-8B, with what the command line changes."""
    changed = {
        "hidden_size": args.hidden,
        "intermediate_size": args.intermediate,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "vocab_size": args.vocabulary,
    }
    return random_model.LLAMA_8B | {key: value for key, value in changed.items() if value is not None}


def job_of(kind: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What every run on rows of this kind is told; the rows and their tokenizer are in `folder`."""
    folder.mkdir()
    rows: list[Row] = generated_rows(2 * args.records + 20, log_lengths=LENGTHS[kind])
    tokenizer = make_tokenizer(rows, folder / "model", args.max_length)
    write_data(that_fit(rows, folder / "model", args.records, args.max_length, args.new_tokens), folder)
    return {
        "shared": str(folder),
        "model": str(folder / "model"),
        "special": {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id},
        "rows_kind": kind,
        "shape": shape_of(args),
        "max_length": args.max_length,
        "batch": args.batch,
        "epochs": 1,
        "at_a_time": args.at_a_time,
        "tokens": args.tokens,
        "new_tokens": args.new_tokens,
        "rollout": args.rollout,
        "ppo_steps": 4 * args.rollouts * (args.rollout // args.batch),
        "attention": args.attention,
        "checkpointing": args.checkpointing,
    }


def attempt(worker: Worker, job: dict[str, Any], threads: int) -> dict[str, Any]:
    """One run's figures, or the last line of what went wrong."""
    try:
        return worker.run(job, threads)
    except SystemExit as error:
        return {"error": str(error).strip().splitlines()[-1]}


def point(job: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Ours, and TRL's where it has the stage."""
    ours = attempt(Worker("tests.benchmarks.gpu_worker"), job, args.threads)
    found: dict[str, Any] = {"stage": job["stage"], "dtype": job["dtype"], "rows": job["rows_kind"], **ours}
    if job["stage"] == "ppo" or not args.trl:
        return found
    theirs = attempt(Worker("tests.benchmarks.trl_worker"), job | {"variant": "plain"}, args.threads)
    found["trl"] = theirs
    if "error" not in theirs and "error" not in ours:
        if theirs["sequence_tokens"] != ours["sequence_tokens"]:
            raise SystemExit(
                f"{job['stage']}: the sides read the rows as different numbers of tokens; the comparison would mean "
                "nothing."
            )
        per_second = 1e3 / theirs["wall_ms_per_row"]
        found["over_trl"] = ours["rows_per_second"] / per_second
        theirs["share_of_peak"] = per_second * ours["flops_per_row"] / ours["matmul_peak"]
    return found


HEADER = (
    f"{'stage':<8}{'dtype':<6}{'rows':<6}{'tokens/s':>10}"
    f"{'of peak':>9}{'peak GiB':>10}{'vs TRL':>8}{'its peak GiB':>14}"
)


def line(found: dict[str, Any]) -> str:
    start = f"{found['stage']:<8}{found['dtype']:<6}{found['rows']:<6}"
    if "error" in found:
        return f"{start}  failed: {found['error'][:110]}"
    text = (
        f"{start}{found['tokens_per_second']:>10,.0f}{found['share_of_peak']:>9.1%}{found['peak_bytes'] / 2**30:>10.2f}"
    )
    if found["stage"] == "ppo":
        return f"{text}  rollout {found['rollout_seconds']:.1f} s, update {found['update_seconds']:.1f} s"
    trl = found.get("trl", {})
    if "error" in trl:
        return f"{text}  TRL failed: {trl['error'][:80]}"
    return f"{text}{found['over_trl']:>7.2f}x{trl['memory_mib'] / 1024:>14.2f}" if trl else text


def verdicts(points: list[dict[str, Any]]) -> list[str]:
    """Each target beside the worst figure of the points that it is about."""
    lines = []
    for what, stage, dtype, key, holds, asked in TARGETS:
        values = [p[key] for p in points if (p["stage"], p["dtype"]) == (stage, dtype) and key in p]
        for value in values:
            shown = f"{value / 2**30:.1f} GiB" if key == "peak_bytes" else f"{value:.2f}"
            lines.append(f"{what:<40}{asked:>10}{shown:>12}  {'reached' if holds(value) else 'missed'}")
        if not values:
            lines.append(f"{what:<40}{asked:>10}{'not run':>12}")
    return lines


def card() -> str:
    """The device that is measured."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu-{platform.machine()}"


def parsed(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16", "nf4"), default=["bf16", "nf4"])
    parser.add_argument("--rows", nargs="+", choices=list(LENGTHS), default=list(LENGTHS))
    parser.add_argument("--records", type=int, default=192, help="rows of each kind")
    parser.add_argument("--batch", type=int, default=32, help="records per optimizer step")
    parser.add_argument("--at-a-time", type=int, default=8, help="records that TRL computes at once")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens in one of our packed rows")
    parser.add_argument("--max-length", type=int, default=4096)
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens that PPO samples per prompt")
    parser.add_argument("--rollout", type=int, default=128, help="samples of a PPO rollout")
    parser.add_argument("--rollouts", type=int, default=2, help="rollouts of PPO, the first of which is not timed")
    parser.add_argument(
        "--attention", choices=("auto", "groups"), default="auto", help="what the probe chooses, or SDPA group by group"
    )
    parser.add_argument(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="recompute activations, on both sides",
    )
    parser.add_argument("--trl", action=argparse.BooleanOptionalAction, default=True, help="run TRL's trainers too")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    for name in ("layers", "hidden", "intermediate", "heads", "kv-heads", "vocabulary"):
        parser.add_argument(f"--{name}", type=int, help="instead of Llama-3.1-8B's")
    parser.add_argument(
        "--json", type=Path, help="write every figure here; else into tests/benchmarks/results/, by date and card"
    )
    args = parser.parse_args(words)
    if args.records % args.batch or args.records < 3 * args.batch:
        parser.error(
            f"--records must be a multiple of --batch ({args.batch}), at least three times it: two steps warm up."
        )
    if args.batch % args.at_a_time or args.rollout % args.batch or args.rollouts < 2:
        parser.error("--batch must be a multiple of --at-a-time, --rollout of --batch, and --rollouts at least 2.")
    return args


def main(words: list[str] | None = None) -> None:
    args = parsed(words)
    today, points = datetime.datetime.now(datetime.UTC).date().isoformat(), []
    print(f"{card()}, {today}, {', '.join(f'{name} {version(name)}' for name in LIBRARIES)}\n\n{HEADER}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for kind in args.rows:
            job = job_of(kind, args, Path(scratch) / kind)
            for dtype in args.dtypes:
                for stage in args.stages:
                    points.append(point(job | {"dtype": dtype, "stage": stage}, args))
                    print(line(points[-1]), flush=True)
    print("\n" + "\n".join(verdicts(points)))
    path = args.json or RESULTS / f"gpu-{today}-{card().replace(' ', '-').lower()}.json"
    path.parent.mkdir(exist_ok=True)
    settings = {key: value for key, value in vars(args).items() if key != "json"}
    found = {
        "date": today,
        "card": card(),
        "versions": {name: version(name) for name in LIBRARIES},
        "shape": shape_of(args),
        "settings": settings,
        "points": points,
    }
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
