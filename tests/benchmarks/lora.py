"""What adapters cost over the frozen base: `python -m tests.benchmarks.lora [--hidden 256 512 1024] [--quantize nf4]
[--json FILE]`

Forward and backward of one decoder (4 Llama layers, random weights, packed rows of 128 tokens), with gradients down to
its input in every case, as training a lower layer's adapter needs them. Fastest of several rounds in turn, CPU time of
the process (CUDA: wall time):

  frozen   the base alone: what is computed anyway
  align    adapters on all linear layers, as Align computes them
  peft     the same adapters in PEFT's own layers
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import LlamaConfig, LlamaForCausalLM

from align.adapters.targets import lora_config
from align.models.base import load_base, prepare
from align.models.precision import DTYPES
from align.models.process import device
from align.models.roles import Roles
from align.packed.pack import Layout

LENGTH = 128


def make_roles(hidden: int, rank: int, dtype: torch.dtype, quantize: str | None) -> Roles:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=4,
        num_attention_heads=max(4, hidden // 64),
        max_position_embeddings=1024,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(dtype)
    if quantize:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            base = load_base(Path(folder), quantize=quantize, dtype=dtype)
    else:
        base = prepare(model.to(device()))
    roles = Roles(base)
    roles.add_adapter("policy", lora_config(rank, 2 * rank, "all-linear", 0.0, base))
    roles.assign("policy", ["policy"])
    roles.train_only("policy")
    return roles


def unfuse(roles: Roles) -> None:
    """Give the layers PEFT's own forward back."""
    for layer in roles.base.modules():
        if isinstance(layer, LoraLayer):
            vars(layer).pop("forward", None)


def spent(roles: Roles, role: str, tokens: int) -> float:
    """Seconds of one forward and backward."""
    layout = Layout(tuple((0, (LENGTH,)) for _ in range(tokens // LENGTH)))
    positions = torch.arange(LENGTH, device=roles.base.device).repeat(tokens // LENGTH)[None]
    hidden = roles.base.config.hidden_size
    x = torch.randn(1, tokens, hidden, dtype=roles.base.dtype, device=roles.base.device, requires_grad=True)
    clock = time.perf_counter if x.is_cuda else time.process_time
    if x.is_cuda:
        torch.cuda.synchronize()
    start = clock()
    with roles.use(role):
        out = roles.base.base_model(
            inputs_embeds=x, position_ids=positions, layout=layout, use_cache=False
        ).last_hidden_state
    out.backward(torch.ones_like(out))
    if x.is_cuda:
        torch.cuda.synchronize()
    took = clock() - start
    for p in roles.trainable().values():
        p.grad = None
    return took


def measure(hidden: int, args: argparse.Namespace) -> dict[str, Any]:
    dtype = DTYPES[args.dtype]
    ours, peft = (make_roles(hidden, args.rank, dtype, args.quantize) for _ in range(2))
    unfuse(peft)
    cases = {"frozen": (ours, "base"), "align": (ours, "policy"), "peft": (peft, "policy")}
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(args.rounds):
        for case, (roles, role) in cases.items():
            best[case] = min(best[case], spent(roles, role, args.tokens))
    over = {f"{case}_over_frozen": best[case] / best["frozen"] - 1 for case in ("align", "peft")}
    return {"hidden": hidden, "rank": args.rank, **{f"{k}_ms": v * 1e3 for k, v in best.items()}, **over}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.lora",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hidden", nargs="+", type=int, default=[256, 512, 1024])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--quantize", choices=["nf4"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'hidden':>8}{'frozen ms':>12}{'align ms':>12}{'peft ms':>12}{'align over':>12}{'peft over':>12}")
    found = []
    for hidden in args.hidden:
        row = measure(hidden, args)
        found.append(row)
        times = "".join(f"{row[f'{case}_ms']:12.1f}" for case in ("frozen", "align", "peft"))
        print(f"{hidden:8}{times}{row['align_over_frozen']:12.1%}{row['peft_over_frozen']:12.1%}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
