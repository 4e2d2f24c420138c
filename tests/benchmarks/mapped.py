"""What does a base that stays in its files take of memory?  `python -m tests.benchmarks.mapped [--layers 6] [--hidden
1024]`

SFT of a Llama of random weights in fp32, each way in a process of its own: the base whole, `base_offload: true`,
`disk`, and, the control, `true` with the files read and not mapped, as they are where they go into pinned memory.
Prints the peak of anonymous memory (RssAnon, proc(5)), which the system cannot take back, and of pages of files, which
it can drop and read again, both beyond what the process had after its imports; and whether the artifacts are equal.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.kills import environment

ROOT = Path(__file__).parents[2]
WAYS = ("whole", "true", "disk", "read")
KINDS = ("RssAnon", "RssFile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=1024)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = made(folder, args.layers, args.hidden)
        print(f"base: {size / 2**20:,.0f} MiB\n\nway    anonymous MiB  of files MiB  digest", flush=True)
        for way in WAYS:
            words = [sys.executable, "-m", "tests.benchmarks.mapped", "--one", way, str(folder)]
            done = subprocess.run(words, env=environment(), capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            anonymous, files, digest = json.loads(done.stdout.splitlines()[-1])
            print(f"{way:5}  {anonymous / 1024:13,.0f}  {files / 1024:12,.0f}  {digest[:12]}", flush=True)


def made(folder: Path, layers: int, hidden: int) -> int:
    """The base, with the tokenizer of data/tiny-base, and rows to train on: bytes of its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.conftest import write_world

    write_world(folder)
    shutil.copytree(ROOT / "data/tiny-base", folder / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(ROOT / "data/tiny-base")
    config.update({"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers})
    config.update({"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64, "head_dim": 64})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder / "base")
    return sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))


def one(way: str, folder: Path) -> None:
    """SFT in this process, and what it took."""
    from align import sft
    from align.models import in_parts
    from align.store import Store

    if way == "read":
        in_parts.mapped_or_read = partial(_read, in_parts.mapped_or_read)
    offload = {"whole": False, "read": True, "true": True}.get(way, way)
    given: Any = {"base": folder / "base", "data": folder / "sft.jsonl", "base_offload": offload, "eval_fraction": 0}
    config = sft.Config(**given, precision="fp32", max_steps=2, batch_size=2, threads=1)
    with peaks() as found:
        artifact = sft.run(config, Store(folder / way))
    print(json.dumps([*found.values(), artifact.digest]))


def _read(original, path, settings, dtype, plain):  # type: ignore[no-untyped-def]
    return original(path, settings, dtype, plain=False)


@contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """Peaks of each kind inside, in KiB, beyond what there is when torch and transformers are imported."""
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import Trainer  # noqa: F401

    before, found, over = now(), dict.fromkeys(KINDS, 0), threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            for kind, held in now().items():
                found[kind] = max(found[kind], held - before[kind])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield found
    over.set()
    thread.join()


def now() -> dict[str, int]:
    text = Path("/proc/self/status").read_text()
    return {kind: int(re.search(rf"{kind}:\s+(\d+)", text)[1]) for kind in KINDS}  # type: ignore[index]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
