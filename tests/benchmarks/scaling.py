"""What a training step costs as things grow: `python -m tests.benchmarks.scaling [--axes length vocabulary …] [--json
FILE] [--profile]`

One axis at a time, every point in a fresh process: random groups on a Llama with random weights, LoRA on all linear
layers, fp32, by the trainer and the losses that the stages use. Per point:

  ms/row     process CPU time per row, after two warm-up steps of floor   wall time over what the matrix products alone
  would take at this machine's own rate, measured in the same process. FLOPs: 4 per
             frozen weight and 6 per adapter weight for each packed token (a shared prefix counts once, in the last
             feed-forward only tokens that count), 4 per weight of the head for each token that counts, and 12 H d for
             each pair of positions that attention sees (forward 4, backward 8)
  memory     peak resident memory of training beyond what is resident once the weights are loaded (CUDA: peak allocated)

`--profile` shows where the time of one point goes instead.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from align import losses, training
from align.adapters.targets import lora_config
from align.data.examples import Example
from align.models.base import prepare
from align.models.process import device
from align.models.roles import Roles
from align.recipe import TrainConfig
from tests.benchmarks.clock import MIB, WARM_UP, now, resident

ROOT = Path(__file__).parents[2]
POINT = {
    "rows": 96,
    "prompt": 96,
    "completion": 32,
    "completions": 2,
    "vocabulary": 4096,
    "rank": 16,
    "hidden": 512,
    "layers": 4,
}
AXES: dict[str, list[dict[str, int]]] = {
    "rows": [{"rows": n, "hidden": 128, "layers": 2} for n in (100, 1_000, 10_000)],
    "length": [
        {"rows": 24_576 // n, "prompt": n // 2, "completion": n // 2, "completions": 1} for n in (128, 512, 1024, 4096)
    ],
    "completions": [{"completions": n, "rows": 192 // n} for n in (1, 2, 4, 8)],
    "vocabulary": [{"vocabulary": n, "rows": 48} for n in (4096, 32_768, 131_072)],
    "rank": [{"rank": n} for n in (4, 16, 64)],
    "size": [{"hidden": n} for n in (128, 256, 512, 1024)],
}


def examples(point: dict[str, int]) -> list[Example]:
    """Random groups of one shape."""
    draw = torch.Generator().manual_seed(0)
    ids = lambda n: torch.randint(3, point["vocabulary"], (n,), generator=draw).tolist()  # noqa: E731
    out = []
    for _ in range(point["rows"]):
        prompt = ids(point["prompt"])
        tails = [ids(point["completion"]) for _ in range(point["completions"])]
        out.append(
            Example(
                tuple(prompt + t for t in tails),
                tuple([False] * len(prompt) + [True] * len(t) for t in tails),
                shared=point["prompt"],
            )
        )
    return out


def make_roles(point: dict[str, int]) -> Roles:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=point["vocabulary"],
        hidden_size=point["hidden"],
        intermediate_size=point["hidden"] * 11 // 4,
        num_hidden_layers=point["layers"],
        num_attention_heads=max(4, point["hidden"] // 64),
        max_position_embeddings=1 << 14,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    roles = Roles(prepare(model.to(device())))
    roles.add_adapter("policy", lora_config(point["rank"], 2 * point["rank"], "all-linear", 0.0, roles.base))
    roles.assign("policy", ["policy"])
    roles.train_only("policy")
    return roles


def flops(
    roles: Roles,
    groups: list[Example],
    *,
    adapter: str | None = "policy",
    head: bool = True,
    scores: bool = False,
    backward: bool = True,
) -> float:
    """FLOPs of the matrix products in a forward over `groups`, and in the backward; nothing is counted twice for being
    computed twice.

    Per packed token 2 for each frozen weight and each weight of `adapter`, per token that counts 2 for each weight of
    the head, per pair of positions that attention sees 4 for each number of a query. The backward adds 2, 4, 2 and 8.
    Of the last feed-forward only the tokens that are read are counted: those that count, or with `scores` each
    sequence's last.
    """
    config, model = roles.base.config, roles.base
    output = model.get_output_embeddings()
    linears = [
        m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not output and "lora_" not in n
    ]
    frozen = sum(m.in_features * m.out_features for m in linears)  # a quantised weight's own size is another
    adapted = sum(p.numel() for p in roles.adapter_parameters(adapter)) if adapter else 0
    tokens = sum(e.tokens for e in groups)
    supervised = sum(sum(s) for e in groups for s in e.supervised)
    counted = supervised if head else 0
    unread = tokens - (sum(len(e.sequences) for e in groups) if scores else supervised)
    last = f"layers.{config.num_hidden_layers - 1}.mlp."
    frozen_last = sum(m.in_features * m.out_features for n, m in model.named_modules() if m in linears and last in n)
    adapted_last = sum(p.numel() for n, p in model.named_parameters() if adapter and last in n and f".{adapter}." in n)
    query = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads) * config.num_attention_heads
    of_frozen, of_adapted = (4, 6) if backward else (2, 2)
    return (
        of_frozen * (tokens * frozen - unread * frozen_last)
        + of_adapted * (tokens * adapted - unread * adapted_last)
        + (4 if backward else 2) * counted * config.hidden_size * config.vocab_size
        + (12 if backward else 4) * seen(groups) * query * config.num_hidden_layers
    )


def seen(groups: list[Example]) -> int:
    """Pairs of positions, the later of which sees the earlier, or itself."""
    total = 0
    for example in groups:
        prefix, branches = example.prefix, [len(s) - example.prefix for s in example.sequences]
        total += prefix * (prefix + 1) // 2 + sum(n * prefix + n * (n + 1) // 2 for n in branches)
    return total


def gemm_rate(hidden: int, rows: int = 1024, dtype: torch.dtype = torch.float32, repeats: int = 30) -> float:
    """FLOPs per second of a plain matrix product, by default of a training step's size."""
    x = torch.randn(rows, hidden, device=device(), dtype=dtype)
    w = torch.randn(hidden, hidden, device=device(), dtype=dtype)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(10):
            x @ w
        if x.is_cuda:
            torch.cuda.synchronize()
        best = max(best, 10 * 2 * x.numel() * hidden / (time.perf_counter() - start))
    return best


class Timer(TrainerCallback):
    """Clock from the end of the warm-up to the last step."""

    start: dict[str, float]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            self.start = now()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.spent = {k: v - self.start[k] for k, v in now().items()}


def measure(point: dict[str, int], profile: bool = False) -> dict[str, Any]:
    """One point in this process."""
    roles, groups = make_roles(point), examples(point)
    batch = max(1, min(8, len(groups) // 6))
    config = TrainConfig(
        base="none",  # type: ignore[arg-type]
        data="none",
        precision="fp32",
        batch_size=batch,
        logging_steps=10_000,
        checkpoint_steps=0,
    )
    plan = training.plan.Plan(
        groups, batch_size=batch, epochs=1, max_steps=None, tokens_per_microbatch=config.tokens_per_microbatch, seed=0
    )
    rate = gemm_rate(point["hidden"])
    timer = Timer()
    DEFAULT_CALLBACKS.append(timer)  # type: ignore[arg-type]
    before = resident()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    with tempfile.TemporaryDirectory() as folder, torch.profiler.profile() if profile else open(os.devnull) as profiler:
        training.trainer.fit(
            roles,
            lambda r, b: losses.tokens.next_token(r.logprobs("policy", b)),
            plan,
            config,
            title=str(point),
            checkpoints=Path(folder),
        )
    if profile:
        print(by_kind(profiler))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident(peak=True)
    timed = [i for step in range(WARM_UP, plan.steps) for i in plan.chosen(step)]
    floor = flops(roles, [groups[i] for i in timed]) / rate
    return {
        **point,
        "cpu_ms_per_row": timer.spent["cpu"] / len(timed) * 1e3,
        "wall_ms_per_row": timer.spent["wall"] / len(timed) * 1e3,
        "over_floor": timer.spent["wall"] / floor,
        "gflops": rate / 1e9,
        "memory_mib": (peak - before) / MIB,
    }


KINDS = {
    "frozen and low-rank products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"),
    "attention": ("aten::_scaled_dot", "aten::_softmax"),
    "optimizer": ("Optimizer", "aten::_fused_adam", "aten::_foreach"),
    "elementwise": (
        "aten::mul",
        "aten::add",
        "aten::silu",
        "aten::pow",
        "aten::neg",
        "aten::rsqrt",
        "aten::div",
        "aten::mean",
        "aten::sum",
    ),
    "copies": ("aten::cat", "aten::copy_", "aten::index", "aten::fill_", "aten::zero", "aten::clone"),
}


def by_kind(profiler: Any) -> str:
    """Share of the time per kind of work, and the ten most expensive operations."""
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    lines, rest = [], total
    for kind, starts in KINDS.items():
        spent = sum(e.self_cpu_time_total for e in events if e.key.startswith(starts))
        rest -= spent
        lines.append(f"{spent / total:7.1%}  {kind}")
    lines.append(f"{rest / total:7.1%}  all else, Python and autograd among it")
    return "\n".join([*lines, "", *(f"{e.self_cpu_time_total / total:7.1%}  {e.key} x {e.count}" for e in events[:10])])


def alone(point: dict[str, int], threads: int, repeats: int) -> dict[str, Any]:
    """The fastest of `repeats` runs of a point, each in a fresh process: others on the machine only ever add."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    runs = []
    for _ in range(repeats):
        command = [sys.executable, "-m", "tests.benchmarks.scaling", "--point", json.dumps(point)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{point} failed:\n{done.stderr[-3000:]}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return dict(min(runs, key=lambda r: r["wall_ms_per_row"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point or args.profile:
        print(json.dumps(measure(POINT | (args.point or {}), args.profile)))
        return
    found: dict[str, Any] = {}
    for axis in args.axes:
        print(f"\n{axis:<14}{'ms/row CPU':>12}{'wall':>9}{'of floor':>10}{'memory MiB':>12}")
        found[axis] = []
        for point in AXES[axis]:
            result = alone(POINT | point, args.threads, args.repeats)
            found[axis].append(result)
            label = {"length": result["prompt"] + result["completion"], "size": result["hidden"]}.get(axis) or result[
                axis
            ]
            figures = f"{result['cpu_ms_per_row']:12.2f}{result['wall_ms_per_row']:9.2f}"
            figures += f"{result['over_floor']:9.2f}x{result['memory_mib']:12.0f}"
            print(f"{label:<14,}{figures}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
