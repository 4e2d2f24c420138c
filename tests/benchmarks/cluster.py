"""How SFT, and what PPO adds to it, would scale: memory, traffic and step time of 8 B and 70 B weights on 8 to 1,024
cards. `python -m tests.benchmarks.cluster`, and with `--check 2 4` the same formulas against 2 and 4 processes here.

Arithmetic, not a measurement. Assumptions:

  weak scaling  each card has one micro-batch of 16,384 packed tokens (--tokens) a step; LoRA of rank 16 on all linear
                layers, bf16
  compute       4 FLOPs a token and frozen weight, 6 a token and adapter weight, 40 % of a card's dense peak
  memory        `align.memory`'s plan of the stage, which --dry-run shows; a card has 80 GB
  layout        a copy on each card where the plan says that one fits, else shards over all cards
  traffic       of shards, a micro-batch, received by each card: (N - 1) / N of twice the layers, twice the embedding
                and once the head, each matrix filled up to N equal parts; a step: the adapters' gradients and 4 bytes
                a tensor
  links         300 GB/s a card inside a machine of 8, 40 GB/s a card between machines; a ring: the slower of what
                crosses a machine's border, shared by its 8 cards, and what a card takes; 10 us a gather and doubling
                of N
  overlap       a layer is gathered while the one before computes: the longer of the two counts
  rollouts      each card answers 64 prompts with 512 tokens a step; a token costs one read of the base at 60 % of
                3.35 TB/s; the prompts' pass and the caches' reads are left out, and so are rewards and values
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import memory
from align.memory.shapes import Shape
from align.memory.sizes import NF4_BYTES, base_weights
from align.recipe import Adapter
from align.sft import STAGE, Config

ROOT = Path(__file__).parents[2]
CARD, PEAK, SHARE = 80e9, 989e12, 0.4
INSIDE, BETWEEN, IN_MACHINE, LATENCY = 300e9, 40e9, 8, 10e-6
READS, ANSWERS, ANSWER = 0.6 * 3.35e12, 64, 512
RANK = 16
CARDS = (8, 64, 256, 1024)
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
SHAPES = {
    "8 B": LLAMA
    | dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    | {"intermediate_size": 14_336, "max_position_embeddings": 131_072},
    "70 B": LLAMA
    | dict(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8)
    | {"intermediate_size": 28_672, "max_position_embeddings": 131_072},
}


@dataclass(frozen=True)
class Traffic:
    """Bytes that a card receives: of each part of a base in shards at one gather, and of gradients a step."""

    layer: int
    embed: int
    head: int
    averaged: int

    def micro_batch(self, layers: int) -> int:
        return 2 * layers * self.layer + 2 * self.embed + self.head


def traffic(shape: Shape, cards: int, size: float, trained: int, tensors: int) -> Traffic:
    """`size`: bytes of a weight of the layers' matrices; embedding, head and norms have 4 in fp32, else 2."""
    plain = 4 if size == 4 else 2

    def received(rows: int, width: int, of: float) -> int:
        return round(math.ceil(rows / cards) * width * of) * (cards - 1)

    matrices = sum(received(out, inner, size) for inner, out in shape.linears.values())
    ends = received(shape.vocabulary, shape.hidden, plain)
    layer = matrices + 2 * received(shape.hidden, 1, plain)
    return Traffic(layer, ends, 0 if shape.tied else ends, 4 * trained + 4 * tensors if cards > 1 else 0)


def trained_weights(shape: Shape, rank: int) -> tuple[int, int]:
    """Weights of an adapter on all linear layers, and its tensors."""
    return shape.layers * rank * sum(map(sum, shape.linears.values())), 2 * shape.layers * len(shape.linears)


def seconds(received: float, cards: int) -> float:
    """Of one gather of `received` bytes on each card."""
    whole = received * cards / (cards - 1)
    machines = max(1, cards // IN_MACHINE)
    crossing = whole * (1 - 1 / machines) / (IN_MACHINE * BETWEEN)
    return max(received / INSIDE, crossing) + LATENCY * math.log2(cards)


def step(shape: Shape, cards: int, size: float, shards: bool, tokens: int) -> dict[str, float]:
    """Seconds of one SFT step, the share of them in which a card waits for others, GB received, and what PPO's answers
    would take beside it."""
    trained, tensors = trained_weights(shape, RANK)
    compute = tokens * (4 * shape.weights + 6 * trained) / (PEAK * SHARE)
    found, layers = traffic(shape, cards, size, trained, tensors), shape.layers
    waiting = seconds(found.averaged, cards)
    if shards:
        hidden = max(0.0, seconds(found.layer, cards) - compute / (2 * layers))
        waiting += 2 * layers * hidden + 2 * seconds(found.embed, cards) + seconds(found.head, cards)
    received = found.averaged + (found.micro_batch(layers) if shards else 0)
    answers = ANSWER * base_weights(shape, "nf4" if size < 2 else None, 2) / READS
    total = compute + waiting
    return {"seconds": total, "waits": waiting / total, "gb": received / 1e9, "rollouts": answers / (answers + total)}


def planned(shape: Shape, cards: int, quantize: str | None, shards: bool, tokens: int) -> tuple[float, float]:
    """Bytes on a card by SFT's plan, while the base is loaded and at the peak of what follows."""
    more: Any = {"base": "none", "data": "none", "max_length": tokens // 2, "tokens_per_microbatch": tokens}
    layout: Any = "shard" if shards else "replicate"
    config = Config(
        adapter=Adapter(rank=RANK), activation_checkpointing=True, batch_size=cards, parallel=layout, **more
    )
    assert STAGE.footprint is not None
    work = memory.Workload(STAGE.footprint, config, shape, quantize, "cuda", True, processes=cards)
    phases = {phase.name: phase.bytes for phase in memory.kinds.plan(work).phases}
    return phases.pop("load"), max(phases.values())


def table(tokens: int) -> Iterator[str]:
    yield "| base | cards | layout | GB a card: load, steps | s a step | waits | GB received | answers' share in PPO |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, config in SHAPES.items():
        shape = Shape.from_config(config)
        assert isinstance(shape, Shape)
        for quantize, size in ((None, 2.0), ("nf4", NF4_BYTES)):
            for cards in CARDS:
                shards = max(planned(shape, cards, quantize, False, tokens)) > CARD
                load, held = planned(shape, cards, quantize, shards, tokens)
                at = step(shape, cards, size, shards, tokens)
                whole = base_weights(shape, quantize, 2) < CARD
                answers = f"{at['rollouts']:.0%}" if whole else "no room: a server"
                layout = "shards" if shards else "copies"
                memory_of = f"{load / 1e9:.1f}, {held / 1e9:.1f}"
                yield (
                    f"| {name} {quantize or 'bf16'} | {cards:,} | {layout} | {memory_of} | {at['seconds']:.2f} | "
                    f"{at['waits']:.0%} | {at['gb']:.2f} | {answers} |"
                )


# ---- against runs on this machine ------------------------------------------------------------------------------------


def run(world: int) -> dict[str, Any]:
    """What the first of so many processes of `cluster_worker` counted and timed."""
    with socket.socket() as s, tempfile.TemporaryDirectory() as folder:
        s.bind(("127.0.0.1", 0))
        port, out = s.getsockname()[1], Path(folder) / "out.json"
        s.close()
        shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
        shared |= {
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "tests.benchmarks.cluster_worker", str(out)]
        told = [{"RANK": str(r), "LOCAL_RANK": str(r)} if world > 1 else {} for r in range(world)]
        running = [subprocess.Popen(command, cwd=ROOT, env=os.environ | shared | mine) for mine in told]
        if any([process.wait() for process in running]):
            raise SystemExit("a process of the run failed; see its lines.")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def check(worlds: Sequence[int]) -> Iterator[str]:
    """Predicted and measured, for so many processes. A step's parts are the CPU time of one process's step, and of a
    gather of each part and an average on so many processes; on a CPU nothing overlaps."""
    from tests.benchmarks import cluster_worker as small

    shape = Shape.from_config({"model_type": "llama", "tie_word_embeddings": False, **small.SIZES})
    assert isinstance(shape, Shape)
    alone = run(1)
    for world in worlds:
        found = run(world)
        assert (found["trained"], found["tensors"]) == trained_weights(shape, small.RANK)
        sent = traffic(shape, world, 4.0, found["trained"], found["tensors"])
        gathered = small.MICRO_BATCHES * sent.micro_batch(shape.layers)
        units = 2 * shape.layers * found["layer"] + 2 * found["embed"] + found["head"]
        cpu = alone["cpu"] + small.MICRO_BATCHES * units + found["average"]
        yield (
            f"{world} processes: gathered {gathered:,} predicted, {found['gathered']:,.0f} counted; averaged "
            f"{sent.averaged:,} and {found['averaged']:,.0f}; CPU s a step {cpu:.3f} and {found['cpu']:.3f} "
            f"({cpu / found['cpu'] - 1:+.0%}; one process {alone['cpu']:.3f})"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=int, nargs="*", metavar="N", help="against runs of N processes here")
    parser.add_argument("--tokens", type=int, default=16_384, help="packed tokens of a micro-batch")
    args = parser.parse_args()
    for line in check(args.check) if args.check else table(args.tokens):
        print(line, flush=True)
