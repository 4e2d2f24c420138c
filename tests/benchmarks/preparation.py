"""Rows of dialogues prepared per CPU second, beside TRL.  `python -m tests.benchmarks.preparation --tokenizer DIR`

From a file of messages to token ids and which of them count, in Arrow: read, checked, rendered, tokenised, masked.
TRL's side is `load_dataset` and what its SFTTrainer does before it trains (`_prepare_dataset`, `assistant_only_loss`),
its cache empty. Both on one thread, each time in a process of its own, by turns; what they import, and a first few
rows, are not counted. `--data` is a file of prompts and completions, whose rows are repeated with a number in each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.conftest import ROOT

ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
WARM = 200
LONGEST = 1024
"""Tokens of a row; both cut what is longer."""
SAID = [
    {"prompt": "What is the capital of France?", "completion": "Paris is the capital of France, on the river Seine."},
    {"prompt": "Name three primary colours.", "completion": "Red, yellow and blue are the primary colours of paint."},
    {"prompt": "为什么天空是蓝色的？", "completion": "因为空气分子对蓝光的散射比对红光的散射更强。"},
    {"prompt": "Write a loop in Python.", "completion": "for i in range(10):\n    print(i)\n" + "# and so on\n" * 20},
]


def dialogues(given: Path | None, rows: int) -> Iterator[str]:
    """Lines of dialogues, each with its number in what is asked."""
    lines = given.read_text(encoding="utf-8").splitlines() if given else map(json.dumps, SAID)
    said = [json.loads(line) for line in lines]
    for i in range(rows):
        row = said[i % len(said)]
        turns = [("user", f"{row['prompt']} ({i})"), ("assistant", row["completion"])]
        messages = [{"role": role, "content": content} for role, content in turns]
        yield json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def ours(tokenizer: str, file: Path, folder: Path) -> int:
    """How many tokens count."""
    from align.data.formats import read_conversations
    from align.rendering.render import load_renderer
    from align.store import Store

    renderer = load_renderer(Path(tokenizer), None, LONGEST, "cut")
    renderer.keep = Store(folder / "store").cached_file
    renderer.conversations(read_conversations(few(file)))
    start = time.process_time()
    table: Any = renderer.conversations(read_conversations(file))
    print(time.process_time() - start)
    return sum(int(part.lists["counts"][1].sum()) for part in table.parts) if hasattr(table, "parts") else 0


def trl(tokenizer: str, file: Path, folder: Path) -> int:
    """As `ours`."""
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    from trl.chat_template_utils import get_training_chat_template

    datasets.disable_progress_bars()
    reads = AutoTokenizer.from_pretrained(tokenizer)
    args = SFTConfig(str(folder / "out"), assistant_only_loss=True, max_length=LONGEST, report_to="none", bf16=False)
    template = get_training_chat_template(reads)
    trainer: Any = SimpleNamespace(_tokenizer=reads, chat_template=template, completion_only_loss=False)

    def prepared(path: Path) -> Any:
        rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / "cache"))
        return SFTTrainer._prepare_dataset(trainer, rows, reads, args, False, None, "train")

    prepared(few(file))
    start = time.process_time()
    table = prepared(file)
    print(time.process_time() - start)
    return sum(int((chunk.flatten().to_numpy() != -100).sum()) for chunk in table.data.column("labels").chunks)


def few(file: Path) -> Path:
    """The first rows of a file, as another one."""
    out = file.with_name("few.jsonl")
    with file.open(encoding="utf-8") as lines:
        out.write_text("".join(line for line, _ in zip(lines, range(WARM), strict=False)), encoding="utf-8")
    return out


def measured(side: str, tokenizer: str, file: Path) -> tuple[float, int, float]:
    """(CPU seconds, tokens that count, GiB at the peak)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.preparation", "--side", side, "--tokenizer", tokenizer]
        command += ["--data", str(file), "--folder", folder]
        env = {**os.environ, **ONE_THREAD, "HF_HOME": folder, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, counted, peak = done.stdout.split()[-3:]
    return float(seconds), int(counted), float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default=str(ROOT / "data/tiny-base"), help="its folder, with a chat template")
    parser.add_argument("--data", type=Path, help="a file of prompts and completions")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        counted = (ours if given.side == "ours" else trl)(given.tokenizer, given.data, given.folder)
        print(counted, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    spent: dict[str, list[float]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        with file.open("w", encoding="utf-8") as out:
            out.writelines(dialogues(given.data, given.rows))
        print(f"{given.rows:,} rows, {file.stat().st_size / 1e6:.0f} MB")
        for _ in range(given.rounds):
            for side, seconds in spent.items():
                took, counted, peak = measured(side, given.tokenizer, file)
                seconds.append(took)
                rate = f"{1e6 * took / given.rows:.0f} µs a row, {given.rows / took:,.0f} rows a CPU second"
                print(f"{side}: {rate}, {counted:,} tokens count, {peak:.2f} GiB at the peak", flush=True)
    ratio = statistics.median(spent["trl"]) / statistics.median(spent["ours"])
    print(f"{ratio:.2f} × the rows a CPU second, medians of {given.rounds}")


if __name__ == "__main__":
    main()
