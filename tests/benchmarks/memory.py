"""Does the memory plan hold?  `python -m tests.benchmarks.memory [--only sft-nf4 …] [--json FILE]`

Every setting is a real stage, from its data file to the committed artifact, on a Llama with random weights, or with
`--model DIR` on any base, in a fresh process with as many steps as fill memory. Predicted: what `--dry-run` says of the
same settings. Measured: peak resident memory of the stage minus resident memory after imports, before anything is read
(as in `tests.benchmarks.clock`; CUDA: peak allocated).

Rows are made of words that are one token each and fill the packed rows, as the plan assumes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from align import memory, reward, sft
from align.inputs.looked import look
from align.stage.ahead.dry_run import memory_setup
from align.stage.question import prepare as prepared
from align.store import Store

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
THREADS = 1


@dataclass(frozen=True)
class Setting:
    """A stage on a Llama of this shape."""

    name: str
    stage: str
    hidden: int = 512
    layers: int = 6
    heads: int = 8
    kv_heads: int = 8
    vocabulary: int = 8192
    tied: bool = False
    """Whether the head is the embedding. Of one that is not, rows of tokens that never come are not read from the file,
    and the plan, which counts all, is above what few words take."""
    stored: str = "fp32"
    quantize: str | None = None
    precision: str = "fp32"
    rank: int = 16
    tokens: int = 2048
    checkpointing: bool = False
    prompt: int = 124
    completion: int = 124
    rollout: int = 32
    """Samples of a rollout, or prompts that are answered."""
    group: int = 1
    """Answers to each prompt."""
    context: int = 2048
    model: str = ""
    """A folder with a base, in place of random weights."""


SETTINGS = [
    Setting("sft", "sft"),
    Setting("sft-checkpointing", "sft", tokens=4096, checkpointing=True, hidden=640),
    Setting("sft-vocabulary", "sft", vocabulary=65_536, tied=True, hidden=384, layers=4, tokens=1024),
    Setting("sft-bf16", "sft", precision="bf16", stored="bf16", tokens=1024, heads=8, kv_heads=2),
    Setting("sft-nf4", "sft", quantize="nf4", hidden=1024, layers=4, tokens=1024),
    Setting("sft-int8", "sft", quantize="int8", hidden=768, layers=4, tokens=1024),
    Setting("reward", "reward", kv_heads=4, layers=8, tokens=1152),
    Setting("dpo", "dpo", hidden=768, layers=4, rank=64, tokens=1152),
    Setting(
        "dpo-checkpointing",
        "dpo",
        precision="bf16",
        vocabulary=32_768,
        hidden=768,
        layers=6,
        tokens=1536,
        checkpointing=True,
    ),
    Setting("ppo", "ppo", completion=48, rollout=32),  # as many tokens in a row as sft
    Setting("ppo-nf4", "ppo", quantize="nf4", vocabulary=65_536, hidden=512, tokens=1024, completion=32, layers=4),
    Setting("grpo", "grpo", tokens=1536, prompt=100, completion=48, rollout=64, group=8),
    Setting(
        "rloo-checkpointing",
        "rloo",
        hidden=640,
        tokens=2048,
        prompt=64,
        completion=64,
        rollout=64,
        group=4,
        checkpointing=True,
    ),
    Setting("pretrain", "pretrain", tokens=1024, layers=8),
    Setting(
        "pretrain-vocabulary", "pretrain", hidden=384, layers=4, vocabulary=32_768, tokens=2048, checkpointing=True
    ),
    Setting("pairs", "pairs", vocabulary=32_768, prompt=200, completion=64, rollout=64, group=4, context=276),
    Setting("evaluate", "evaluate", prompt=160, completion=80, rollout=32, tokens=4096),
    Setting("merge", "merge", stored="bf16", vocabulary=65_536, hidden=768, layers=6),
]


def on_model(model: Path) -> list[Setting]:
    """Stages of RLHF on a base, in both precisions; merging is always in fp32."""
    found = [Setting("merge", "merge", model=str(model))]
    for precision in ("fp32", "bf16"):
        common: dict[str, Any] = {
            "model": str(model),
            "precision": precision,
            "tokens": 768,
            "prompt": 60,
            "completion": 60,
        }
        for stage in ("sft", "reward", "dpo", "ppo"):
            found.append(Setting(f"{stage}-{precision}", stage, **common, rollout=16))
    return found


# ---- one setting, in processes of its own ----------------------------------------------------------------------------


def prepare(setting: Setting, folder: Path) -> None:
    """Model, rows and, for stages that build on one, the artifact before them."""
    draw = random.Random(0)
    words = make_model(setting, folder / "model", draw) if not setting.model else words_of(Path(setting.model))
    write_rows(setting, folder, draw, words)
    store = Store(str(folder / "store"))
    if setting.stage in ("ppo", "rloo"):
        reward.run(
            reward.Config(**training(setting, folder, "pairs", one=True), centre_samples=0, name="before"), store
        )
    elif setting.stage in ("merge", "pairs", "evaluate"):
        sft.run(sft.Config(**training(setting, folder, "sft", one=True), name="before"), store)


def words_of(model: Path) -> list[str]:
    """Words that the model's tokenizer takes as one token each, after a blank."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    found = (tokenizer.decode([i]).strip() for i in range(1000, 9000))
    return [
        w
        for w in found
        if w.isascii() and w.isalpha() and len(tokenizer.encode(f" {w}", add_special_tokens=False).ids) == 1
    ][:500]


def make_model(setting: Setting, folder: Path, draw: random.Random) -> list[str]:
    """A Llama with random weights, whose tokenizer takes the words that are given back as one token each."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from align.rendering.tokenizer import train_tokenizer

    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(500)]
    tokenizer = train_tokenizer([" ".join(words)] * 3, 4096, 2048)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=setting.vocabulary,
        hidden_size=setting.hidden,
        intermediate_size=setting.hidden * 11 // 4,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        num_key_value_heads=setting.kv_heads,
        max_position_embeddings=setting.context,
        tie_word_embeddings=setting.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[setting.stored]
    model: Any = LlamaForCausalLM(config)
    model.to(dtype).save_pretrained(folder)
    return words


def write_rows(setting: Setting, folder: Path, draw: random.Random, words: list[str]) -> None:
    """Rows of every kind, as long as the setting says, and a judge that scores at random."""
    text = lambda n: "".join(f" {w}" for w in draw.choices(words, k=n))  # noqa: E731
    records = 3 * setting.tokens // (setting.prompt + setting.completion) + 4
    prompts = [text(setting.prompt - 1) for _ in range(max(records, setting.rollout))]
    rows: dict[str, list[dict[str, str]]] = {
        "sft": [{"prompt": p, "completion": text(setting.completion)} for p in prompts],
        "pairs": [
            {"prompt": p, "chosen": text(setting.completion), "rejected": text(setting.completion)} for p in prompts
        ],
        "prompts": [{"prompt": p} for p in prompts],
        "texts": [{"text": p + text(setting.completion)} for p in prompts],
    }
    for name, several in rows.items():
        for suffix, part in (("", several), (".eval", several[:2])):
            (folder / f"{name}{suffix}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in part), encoding="utf-8"
            )
    judge = (
        "import random\n\n\ndef score(prompts, completions, **columns):\n    return [random.random() for _ in "
        "completions]\n"
    )
    (folder / "judge.py").write_text(judge, encoding="utf-8")


def training(setting: Setting, folder: Path, data: str, one: bool = False) -> dict[str, Any]:
    """Settings of a training stage; `one` is a single small step, whose memory does not matter."""
    fields: dict[str, Any] = {
        "base": {"model": setting.model or str(folder / "model"), "quantize": setting.quantize},
        "data": str(folder / f"{data}.jsonl"),
        "chat_template": "plain",
        "precision": setting.precision,
        "threads": THREADS,
        "adapter": {"rank": setting.rank, "alpha": 2.0 * setting.rank},
        "batch_size": 1 if one else 2 * setting.tokens // (setting.prompt + setting.completion),
        "max_steps": 1 if one else 2,
        "max_length": setting.prompt + setting.completion + 12,
        "tokens_per_microbatch": setting.tokens,
        "activation_checkpointing": setting.checkpointing,
        "checkpoint_steps": 0,
    }
    return fields | ({"eval_data": str(folder / f"{data}.eval.jsonl")} if data != "prompts" else {})


def stage_of(setting: Setting, folder: Path) -> tuple[Any, Any]:
    """(the stage's module, its config)."""
    module, judge = importlib.import_module(f"align.{setting.stage}"), f"{folder / 'judge.py'}:score"
    prompts = {"data": str(folder / "prompts.jsonl"), "max_new_tokens": setting.completion, "threads": THREADS}
    if setting.stage in ("ppo", "grpo", "rloo"):
        fields = (
            training(setting, folder, "prompts")
            | prompts
            | {"batch_size": setting.rollout // 2, "rollout_size": setting.rollout}
        )
        fields |= (
            {"judges": {"chance": judge}} if setting.stage == "grpo" else {"reward": "before", "trust_reward": True}
        )
        fields |= {"ppo_epochs": 1} if setting.stage == "ppo" else {"group_size": setting.group}
    elif setting.stage == "pairs":
        fields = prompts | {
            "parent": "before",
            "judge": judge,
            "n": setting.group,
            "limit": setting.rollout,
            "precision": "fp32",
        }
    elif setting.stage == "evaluate":
        fields = prompts | {
            "compare": ["before"],
            "texts": str(folder / "sft.jsonl"),
            "limit": setting.rollout,
            "precision": "fp32",
        }
        fields |= {"max_length": setting.prompt + setting.completion + 12, "tokens_per_microbatch": setting.tokens}
    elif setting.stage == "merge":
        fields = {"parent": "before", "threads": THREADS}
    else:
        fields = training(setting, folder, {"sft": "sft", "pretrain": "texts"}.get(setting.stage, "pairs"))
        fields |= {"centre_samples": 0} if setting.stage == "reward" else {}
    return module, module.Config(**fields)


def measure(setting: Setting, folder: Path) -> float:
    """Peak bytes of the stage beyond what is resident after imports."""
    import torch

    from tests.benchmarks import rooms
    from tests.benchmarks.clock import resident

    rooms.import_all()
    module, config = stage_of(setting, folder)
    before = 0 if torch.cuda.is_available() else resident()
    module.run(config, Store(str(folder / "store")))
    return (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident(peak=True)) - before


def child(step: str, setting: Setting, folder: Path) -> str:
    """Run one step of a setting in a process of its own; the last line that it prints."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(THREADS),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.memory",
        "--step",
        step,
        json.dumps(asdict(setting)),
        str(folder),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{setting.name}: {step} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


# ---- beside the plan -------------------------------------------------------------------------------------------------


def predict(setting: Setting, folder: Path) -> memory.MemoryPlan:
    """What `--dry-run` says of the setting."""
    import torch

    module, config = stage_of(setting, folder)
    where, store = "cuda" if torch.cuda.is_available() else "cpu", Store(str(folder / "store"))
    looked = look(config, module.STAGE.reads(config), prepared(module.STAGE, config, store).data)
    return memory.plan(memory_setup(module.STAGE, config, store, {}, where, looked))


def row(setting: Setting) -> dict[str, Any]:
    """Predicted and measured bytes of one setting."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        child("prepare", setting, folder)
        planned = predict(setting, folder)
        measured = float(child("measure", setting, folder))
    parts = {part.name: part.bytes for part in planned.peak.parts}
    return {
        "setting": asdict(setting),
        "predicted": planned.peak.bytes,
        "measured": measured,
        "phase": planned.peak.name,
        "parts": parts,
    }


def line(found: dict[str, Any]) -> str:
    predicted, measured, setting = found["predicted"], found["measured"], found["setting"]
    return (
        f"{setting['name']:<20}{predicted / MIB:>10.0f}{measured / MIB:>10.0f}{predicted / measured:>8.2f}  "
        f"{found['phase']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", type=Path, help="a base in the Hugging Face layout, in place of Llamas with random weights"
    )
    parser.add_argument("--only", nargs="+", help="settings by name; all without it")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        step, setting, folder = args.step[0], Setting(**json.loads(args.step[1])), Path(args.step[2])
        if step == "prepare":
            prepare(setting, folder)
        else:
            print(measure(setting, folder))
        return
    there = {s.name: s for s in (on_model(args.model.resolve()) if args.model else SETTINGS)}
    if unknown := [name for name in args.only or [] if name not in there]:
        parser.error(f"--only: there is no setting {unknown[0]}; choose from {', '.join(there)}.")
    print(f"{'MiB':<20}{'predicted':>10}{'measured':>10}{'ratio':>8}  peak in", flush=True)
    rows = []
    for name in args.only or there:
        rows.append(row(there[name]))
        print(line(rows[-1]), flush=True)
    ratios = [r["predicted"] / r["measured"] for r in rows]
    print(f"{sum(abs(1 - ratio) <= 0.15 for ratio in ratios)} of {len(rows)} within 15 %")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
