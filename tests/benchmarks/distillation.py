"""Distillation of a real model into one of a few million weights.  `python -m tests.benchmarks.distillation --teacher
DIR --data sft.jsonl [--hidden 16] [--layers 2] [--rows 200] [--steps 60]`

The student is a random model of the teacher's architecture and tokenizer, far narrower; the teacher is the model in DIR
after one step of SFT, which makes it an artifact. Prints the student's weights, KL(teacher || student) per held-out
token before and after, and how much it fell.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from align import distill, sft
from align.recipe.settings import Base
from align.store import Store


def student(teacher: Path, folder: Path, hidden: int, layers: int) -> int:
    """A random narrow model in `folder`; its number of weights."""
    config = AutoConfig.from_pretrained(teacher)
    config.hidden_size, config.num_hidden_layers, config.intermediate_size = hidden, layers, 3 * hidden
    config.num_attention_heads = config.num_key_value_heads = 2
    config.head_dim, config.tie_word_embeddings = hidden // 2, True
    config.layer_types = None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(type(config)(**config.to_dict()), dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    return model.num_parameters()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, store = Path(place), Store(Path(place) / "store")
        data = folder / "rows.jsonl"
        with args.data.open(encoding="utf-8") as rows:
            data.write_text("".join(itertools.islice(rows, args.rows)), encoding="utf-8")
        weights = student(args.teacher, folder / "student", args.hidden, args.layers)
        shared: dict[str, Any] = {"data": data, "threads": args.threads, "truncate": "drop", "max_length": 256}
        shared |= {"special_tokens": "text", "warmup_ratio": 0.0}
        teacher = sft.run(
            sft.Config(base=Base(model=str(args.teacher)), max_steps=1, batch_size=1, name="teacher", **shared), store
        )
        config = distill.Config(
            base=Base(model=str(folder / "student")),
            teacher=teacher.digest,
            method="full",
            beta=0.0,
            learning_rate=1e-2,
            max_steps=args.steps,
            batch_size=16,
            **shared,
        )
        made = distill.run(config, store)
        before, after = made.metrics["start/kl"], made.metrics["eval/kl"]
        print(f"{weights:,} weights: held-out KL {before:.3f} -> {after:.3f} nats a token ({after / before - 1:+.0%})")


if __name__ == "__main__":
    main()
