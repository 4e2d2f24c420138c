"""Sampling beside transformers' two ways: `python -m tests.benchmarks.sampling [--prompts 64] [--n 4] [--model DIR]
[--data FILE]`

On a real base, as issue 14 has it: `--model DIR --data PROMPTS.jsonl --prompts 16 --n 4 --new-tokens 32 --precision
bf16 --path padded --no-continuous --repeats 3 --threads 1`. `--path` takes our packed or our padded path; both run
beside `generate` of the same weights as they are ordinarily loaded (not frozen), in turn. Peak memory is this process's
growth while a side samples.

The same prompts, answers per prompt and length limit, in turn in one process: ours shares each prompt's prefill and
drops what has ended; `generate` gets all rows in one left-padded batch with cache; `generate_batch` (continuous
batching over a paged cache) gets requests. All sample the model's own distribution at temperature 1. Reported are
tokens per second of process CPU time and of wall time, medians over the repeats.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import nn
from transformers import ContinuousBatchingConfig

from align.data.formats import read_prompts
from align.ground.cost import peak_memory, reset_peak_memory
from align.models.base import load_base
from align.models.precision import DTYPES
from align.models.roles import Roles
from align.packed.attention import native_attention
from align.rendering.render import load_renderer
from align.sampling.generating import pad as padded
from align.sampling.rollout import Sampler, generation_config
from tests.benchmarks.clock import now

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--n", type=int, default=4, help="answers per prompt")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", type=Path, default=ROOT / "data/tiny-base")
    parser.add_argument(
        "--data", type=Path, default=ROOT / "data/quickstart/heldout.jsonl", help="prompts (data/world.py makes these)"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--path", choices=["packed", "padded"], default="packed")
    parser.add_argument("--no-continuous", action="store_true", help="leave generate_batch out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    roles = Roles(load_base(args.model, quantize=None, dtype=DTYPES[args.precision]))
    renderer = load_renderer(args.model, None, 512)
    prompts = renderer.prompt_ids(list(read_prompts(args.data))[: args.prompts])
    pad = renderer.tokenizer.pad_token_id
    sampler = Sampler(roles, "base", renderer.stop_ids, pad)
    if args.path == "packed" and not sampler.grows:
        parser.error(f"this base takes the padded path: {roles.why_padded}")
    sampler.grows = args.path == "packed"
    config = generation_config(renderer.stop_ids, pad, args.new_tokens)
    config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=args.n)

    def ours() -> int:
        answers = sampler(prompts, n=args.n, max_new_tokens=args.new_tokens, temperature=1.0)
        return sum(len(a.ids) for several in answers for a in several)

    def theirs() -> int:
        ids, mask = padded(prompts, pad, roles.base.device, "left")
        with torch.no_grad(), native_attention(roles.base), ordinarily_loaded(roles.base):
            rows = (
                cast(Any, roles.base)
                .generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
                .tolist()
            )
        return sum(trimmed(row, renderer.stop_ids) for row in rows)

    longest = max(map(len, prompts)) + args.new_tokens
    pages = ContinuousBatchingConfig(
        page_size=64, num_blocks=2 * len(prompts) * args.n * -(-longest // 64), max_batch_tokens=1024
    )

    def continuous() -> int:
        with torch.no_grad(), native_attention(roles.base):
            rows = cast(Any, roles.base).generate_batch(prompts, config, pages, warmup=False)
        assert len(rows) == len(prompts) * args.n
        return sum(len(row.generated_tokens) for row in rows.values())

    sides = {f"align ({args.path}, {args.precision})": ours, "generate": theirs}
    if not args.no_continuous:
        sides["generate_batch"] = continuous
    peaks = dict.fromkeys(sides, 0)
    rates: dict[str, dict[str, list[float]]] = {side: {"cpu": [], "wall": []} for side in sides}
    for repeat in range(args.repeats + 1):
        for side, sample in sides.items():
            reset_peak_memory()
            before, start = peak_memory(), now()
            tokens = sample()
            peaks[side] = max(peaks[side], peak_memory() - before)
            if repeat:  # the first warms up
                for clock, end in now().items():
                    rates[side][clock].append(tokens / (end - start[clock]))
    for clock in ("cpu", "wall"):
        mine, *others = (median(rates[side][clock]) for side in sides)
        beside = ", ".join(
            f"{side} {rate:,.1f} ({mine / rate:.2f}x)" for side, rate in zip(list(sides)[1:], others, strict=True)
        )
        print(f"{clock:5}{mine:10,.1f} tokens/s; {beside}")
    print(
        "peak memory beyond the model: " + ", ".join(f"{side} {peak / 2**20:,.0f} MiB" for side, peak in peaks.items())
    )


@contextmanager
def ordinarily_loaded(model: nn.Module) -> Iterator[None]:
    """As `from_pretrained` leaves it, with weights that require a gradient: torch multiplies slices by frozen ones far
    more slowly."""
    model.requires_grad_(True)
    try:
        yield
    finally:
        model.requires_grad_(False)


def trimmed(row: list[int], stop_ids: tuple[int, ...]) -> int:
    """Tokens up to the first stop id."""
    return next((i + 1 for i, token in enumerate(row) if token in stop_ids), len(row))


if __name__ == "__main__":
    main()
