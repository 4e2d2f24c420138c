"""How far bf16 is from fp32 on a real base: `python -m tests.benchmarks.precision --model DIR --pairs FILE [--rows 8]
[--tokens 200]`

Per token of the chosen answers, root mean square over all tokens, in nats: packed (ours, head included), and
transformers' SDPA and eager attention with log_softmax in fp32 of its own bf16 logits, each against transformers in
fp32. Then whether a run would start: with the adapter that it starts from as reference, and with another. `--pairs`
holds one JSON object per line with `chosen` and `rejected` texts.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from align.adapters.targets import lora_config
from align.data.examples import Example
from align.ground.errors import AlignError
from align.measures.passes import flat_logprobs, with_column
from align.models.base import load_base
from align.models.roles import Roles
from align.packed.attention import native_attention
from align.packed.pack import pack
from align.training.checks.start import assert_starts_at_reference


def read(path: Path, tokenizer: Any, rows: int, tokens: int) -> list[Example]:
    """Pairs whose texts share a beginning, cut at `tokens`; what counts is what comes after it."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    out: list[Example] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        chosen, rejected = (
            start + tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in ("chosen", "rejected")
        )
        shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
        if 8 < shared < tokens - 16 and min(len(chosen), len(rejected)) > shared + 4:
            both = (tuple(chosen[:tokens]), tuple(rejected[:tokens]))
            out.append(Example(both, tuple(tuple([False] * shared + [True] * (len(s) - shared)) for s in both), shared))
        if len(out) == rows:
            break
    return out


@torch.no_grad()
def alone(model: Any, examples: list[Example], attention: str) -> Tensor:
    """Log-probs of every token that counts, by transformers, one sequence at a time."""
    found = []
    model.native_attention = attention
    with native_attention(model):
        for e in examples:
            for s in e.sequences:
                logits = model(
                    input_ids=torch.tensor([s]), use_cache=False, logits_to_keep=len(s) - e.shared + 1
                ).logits[0, :-1]
                found.append(
                    torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(s[e.shared :])[:, None])[:, 0]
                )
    return torch.cat(found)


@torch.no_grad()
def packed(roles: Roles, examples: list[Example]) -> Tensor:
    found = []
    for e in examples:
        batch = pack([e])
        found.append(roles.logprobs("base", batch)[batch.rows])
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    args = parser.parse_args()
    examples = read(args.pairs, AutoTokenizer.from_pretrained(args.model), args.rows, args.tokens)
    model = load_base(args.model, quantize=None, dtype=torch.float32)
    truth = alone(model, examples, "sdpa")
    del model
    gc.collect()
    started = time.process_time()
    roles = Roles(base := load_base(args.model, quantize=None, dtype=torch.bfloat16))
    print(f"bf16: packed path {'taken' if roles.packed else 'refused: ' + roles.why_padded} (loaded and probed in "
          f"{time.process_time() - started:.1f} CPU seconds)")  # fmt: skip
    ways = {
        "packed": packed(roles, examples),
        "sdpa": alone(base, examples, "sdpa"),
        "eager": alone(base, examples, "eager"),
    }
    rms = {name: float((found - truth).double().square().mean().sqrt()) for name, found in ways.items()}
    print(f"{len(truth)} tokens, rms from fp32: " + ", ".join(f"{name} {value:.4f}" for name, value in rms.items()))
    print(f"packed / sdpa {rms['packed'] / rms['sdpa']:.2f}; highest log-prob {float(ways['packed'].max()):.2g}")
    starts(roles, examples)


def starts(roles: Roles, examples: list[Example]) -> None:
    """Whether a run starts with its own reference, and with another one: in its weights, and in its log-probs alone."""
    torch.manual_seed(0)
    base_std = {"policy": 0.02, "reference": 0.02, "other": 0.02}
    for name, std in base_std.items():
        roles.add_adapter(name, lora_config(8, 16, "all-linear", 0.0, roles.base))
        for key, parameter in roles.base.named_parameters():
            if f".{name}." in key and "lora_B" in key:
                parameter.data.normal_(std=std)
        roles.assign(name, [name])
    for mine, its in zip(roles.adapter_parameters("policy"), roles.adapter_parameters("reference"), strict=True):
        its.data = mine.data.clone()
    for what, role, measured in (("own", "reference", "reference"), ("another's log-probs", "reference", "other"),
                                 ("another adapter", "other", "other")):  # fmt: skip
        column = with_column(examples, "ref_logprobs", flat_logprobs(roles, measured, examples, 4096).tobytes())
        roles.assign("reference", [role])
        try:
            assert_starts_at_reference(roles, column, 4096)
            print(f"reference: {what}: the run starts")
        except AlignError as error:
            print(f"reference: {what}: refused ({error})")
        roles.assign("reference", ["reference"])


if __name__ == "__main__":
    main()
