"""A recipe on two workers of Ray Train gives the artifact that `align launch` gives.

Needs `ray[train]` and about 3 GB of memory. Ray kills workers where a machine has little left, so its watch is off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from align.store import Store
from tests.conftest import ROOT, run_align, write_rows

pytest.importorskip("ray.train")
pytestmark = pytest.mark.slow

RECIPE = f"""\
name: r
base: {ROOT}/data/tiny-base
precision: fp32
threads: 1
stages:
  sft: {{data: demos.jsonl, max_steps: 3, batch_size: 4, learning_rate: 1e-3}}
"""


def test_two_workers_give_torchruns_digest(tmp_path: Path) -> None:
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "any")
    rows = [{"prompt": f"What about {day}?", "completion": f"It is {day}."} for day in days]
    write_rows(tmp_path / "demos.jsonl", rows)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    run_align("launch", recipe, "--processes", "2", "--store", tmp_path / "torchrun")
    script = [sys.executable, ROOT / "recipes/launch/ray_train.py", recipe, "--workers", "2"]
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_memory_monitor_refresh_ms": "0"}
    subprocess.run([*script, "--store", tmp_path / "ray-store", "--failures", "0"], env=os.environ | more, check=True)
    by_ray, by_torchrun = (Store(tmp_path / name).resolve("r/sft").digest for name in ("ray-store", "torchrun"))
    assert by_ray == by_torchrun
    run_align("run", recipe, "--store", tmp_path / "one")
    assert (
        Store(tmp_path / "one").resolve("r/sft").digest != by_ray
    )  # negative control: one process adds in another order
