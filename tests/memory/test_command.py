"""`--memory` on the command line, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.memory.workloads import LLAMA_8B
from tests.test_recipes import fake_hub, own_data


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text((ROOT / "recipes/qlora-8b-24gb.yaml").read_text())
    own_data(tmp_path)
    fake_hub(tmp_path / "hub", "meta-llama/Llama-3.1-8B", LLAMA_8B)
    return tmp_path


def dry_run(project: Path, *words: str, code: int = 0) -> tuple[str, list[str], float]:
    """(what it printed, tensor libraries that were imported, CPU seconds) in a process of its own."""
    line = ["run", str(project / "recipe.yaml"), "--dry-run", "--store", str(project / "store"), *words]
    program = f"""
import json, resource, sys
from align.ground.terminal import guarded
from align.cli import dispatch
guarded(lambda: dispatch({line!r}))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([sorted({{"peft"}} & set(sys.modules)), used.ru_utime + used.ru_stime]))
"""
    environment = os.environ | {"HF_HUB_CACHE": str(project / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == code, done.stderr
    if code:
        return done.stderr, [], 0.0
    *lines, found = done.stdout.splitlines()
    return "\n".join(lines), *json.loads(found)


@pytest.mark.slow
def test_the_qlora_recipe_fits_a_24_gib_card_and_only_quantised(project: Path):
    text, heavy, seconds = dry_run(project, "--memory", "24GiB", "--device", "cuda")
    assert heavy == [] and seconds < 20.0  # of which transformers takes 4 to be imported, for the tokenizer
    below = text.partition("memory on the GPU")[2].splitlines()
    verdicts = {stage: verdict_of(below, stage) for stage in ("sft", "reward", "dpo", "ppo", "merged")}
    # merging is for main memory
    assert verdicts == {"sft": "fits", "reward": "fits", "dpo": "fits", "ppo": "fits", "merged": "too large"}
    # Negative control: the same without quantisation.
    plain, _, _ = dry_run(project, "--memory", "24GiB", "--device", "cuda", "--set", "base.quantize=null")
    below = plain.partition("memory on the GPU")[2].splitlines()
    assert verdict_of(below, "ppo") == verdict_of(below, "reward") == "too large"


def verdict_of(lines: list[str], stage: str) -> str:
    at = next(i for i, line in enumerate(lines) if line.startswith(f"qlora-8b/{stage} "))
    return next(word for line in lines[at:] for word in ("fits", "too large") if line.strip().startswith(f"{word} "))


def test_no_torch_is_seen_where_it_is(project: Path):
    """Negative control of the above: a program that imports numpy is seen."""
    program = "import sys, numpy; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "['numpy']"


def test_words_that_are_refused(project: Path):
    assert "--memory takes a size such as 24GiB" in dry_run(project, "--memory", "plenty", code=2)[0]
    assert "--device takes cpu or cuda" in dry_run(project, "--device", "tpu", code=2)[0]
