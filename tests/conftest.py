"""A small world and a recipe over it that runs through every stage in seconds: two layers of width 32, two steps a
stage."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

import align
from align.ground import progress
from align.ground.disk import locked
from align.recipe import parse_flags
from align.stage import catalogue
from align.store import Artifact, Store
from tests import forked

ROOT = Path(__file__).parents[1]
COLOURS = ("red", "blue", "green", "black", "white", "pink", "brown", "grey")
THINGS = ("ball", "hat", "cup", "box", "car")

RECIPE = """\
name: tiny
seed: 3
precision: fp32
threads: 1
max_length: 96
batch_size: 8
max_steps: 2
warmup_ratio: 0.0
logging_steps: 1
adapter: {rank: 4, alpha: 8}
stages:
  pretrain:
    data: texts.jsonl
    architecture:
      {hidden_size: 32, layers: 2, heads: 4, kv_heads: 2, intermediate_size: 48, vocab_size: 300, context: 128}
  sft: {parent: pretrain, data: sft.jsonl, learning_rate: 0.01}
  reward: {parent: sft, data: pairs.jsonl, centre_samples: 4, centre_max_new_tokens: 8}
  dpo: {parent: sft, data: pairs.jsonl, beta: 0.2, parent_adapter: stack, learning_rate: 0.01}
  ppo:
    {parent: sft, reward: reward, data: prompts.jsonl, rollout_size: 8, max_new_tokens: 8, ppo_epochs: 2,
     learning_rate: 0.01, trust_reward: true}
"""


@pytest.fixture(scope="session", autouse=True)
def slow_machines_are_silent() -> None:
    """What work says once it has been silent for long depends on the machine; tests of that set it themselves."""
    progress.FIRST = 3600.0


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard() -> None:
    """What a shell starts in the background ignores Ctrl-C, what nohup starts a closed terminal, and what those start
    does, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def nobody_pulls_the_plug() -> Iterator[None]:
    """What is written need not have reached the disk: waiting for it would take up to a quarter of a test's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_frozen_is_counted() -> Iterator[None]:
    """Counting goes through a million objects one by one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "get_freeze_count", lambda: 1)
        yield


@pytest.fixture(scope="module", autouse=True)
def libraries_are_no_garbage() -> None:
    """Stages collect garbage before and after their work; to look through all that torch and transformers hold each
    time would be a third of what they take here."""
    gc.collect()
    gc.freeze()


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def make_data(command: str, *words: str) -> Artifact:
    """`align data COMMAND …`, without its own process."""
    stage = catalogue.stage_of(command)
    config = parse_flags(stage.config, words, prog=f"align {command}").config
    made: Artifact = catalogue.module_of(command).run(config, Store(config.store))
    return made


def write_world(folder: Path) -> Path:
    """Data of every kind, and the recipe; returns the recipe."""
    facts = [(thing, colour) for thing in THINGS for colour in COLOURS]
    questions = [f"The {thing} is {colour}. Which colour is the {thing}?" for thing, colour in facts]
    write_rows(
        folder / "texts.jsonl", [{"text": f"{q} It is {c}."} for q, (_, c) in zip(questions, facts, strict=True)] * 3
    )
    write_rows(
        folder / "sft.jsonl",
        [{"prompt": q, "completion": f"It is {c}."} for q, (_, c) in zip(questions, facts, strict=True)],
    )
    pairs = [
        {"prompt": q, "chosen": f"It is {c}.", "rejected": "Who knows?"}
        for q, (_, c) in zip(questions, facts, strict=True)
    ]
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "prompts.jsonl", [{"prompt": q} for q in questions[:8]])
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return recipe


@dataclass(frozen=True)
class Pipeline:
    """A recipe that was run, its store, and what each stage made."""

    recipe: Path
    store: Store
    made: dict[str, Artifact]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The recipe, run once. Only for tests that add nothing to its store; see `pipeline`."""
    folder = tmp_path_factory.mktemp("trained")
    store = Store(folder / "store")
    recipe = write_world(folder)
    return Pipeline(recipe, store, align.run(recipe, store))


@pytest.fixture
def pipeline(trained: Pipeline, tmp_path: Path) -> Pipeline:
    """A copy of `trained` that a test may change."""
    shutil.copytree(trained.recipe.parent, tmp_path / "pipeline")
    return Pipeline(tmp_path / "pipeline/tiny.yaml", Store(tmp_path / "pipeline/store"), trained.made)


QUICK = {
    "threads": 1,
    "stages.sft.epochs": None,
    "stages.reward.epochs": None,
    "stages.sft.max_steps": 2,
    "stages.sft.batch_size": 8,
    "stages.pairs.n": 2,
    "stages.reward.max_steps": 2,
    "stages.reward.batch_size": 8,
    "stages.reward.centre_samples": 8,
    "stages.dpo.max_steps": 2,
    "stages.dpo.batch_size": 8,
    "stages.ppo.max_steps": 2,
    "stages.ppo.ppo_epochs": 2,
    "stages.ppo.rollout_size": 16,
    "stages.ppo.batch_size": 16,
    "stages.ppo.trust_reward": True,
}
"""What makes the quickstart's recipe one of two steps a stage; it keeps its learning rates, losses and judges."""


def set_in_recipe(recipe: Path, settings: Mapping[str, Any]) -> Path:
    """Write dotted settings into a recipe, as `--set` would lay them over it; None takes one out."""
    yaml = YAML()
    document = yaml.load(recipe)
    for key, value in settings.items():
        at = document
        *groups, last = key.split(".")
        for group in groups:
            at = at[group]
        at[last] = value
        if value is None:
            del at[last]
    yaml.dump(document, recipe)
    return recipe


def copy_project(folder: Path) -> Path:
    """A small checkout in `folder`: recipes/, and data/ with its generators and a little of what they make."""
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    (folder / "data").mkdir()
    for file in ("world.py", "gold.py"):
        shutil.copy(ROOT / "data" / file, folder / "data" / file)
    world = [sys.executable, str(folder / "data/world.py"), "--out", str(folder / "data/quickstart")]
    subprocess.run([*world, "--demos", "64", "--prompts", "48", "--heldout", "12"], check=True)
    subprocess.run([*world, "--base", "200"], check=True)
    return folder


@pytest.fixture(scope="session")
def quick_store(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The quickstart, run once at two steps a stage on the shipped base, in a small checkout with its store. Add
    nothing to it."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared  # workers share one run
    folder = shared / "quickstart"
    with locked(shared / "quickstart.lock"):
        if not folder.exists():
            copy_project(folder)
            set_in_recipe(folder / "recipes/quickstart.yaml", QUICK)
            shutil.copytree(ROOT / "data/tiny-base", folder / "data/tiny-base")
        recipe, store = folder / "recipes/quickstart.yaml", Store(folder / ".align")
        return Pipeline(recipe, store, align.run(recipe, store))


def run_align(
    *words: str | Path, code: int = 0, cwd: Path | None = None, stdin: str = "", store: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The `align` command in a process of its own, which must exit with `code`; `store` is its $ALIGN_STORE."""
    environment = {k: v for k, v in os.environ.items() if k != "ALIGN_STORE"} | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    environment |= {"ALIGN_STORE": str(store)} if store else {}
    done = forked.run([*map(str, words)], cwd or ROOT, environment, stdin)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def all_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modelling code computes norms and softmax in fp32 whatever the model's dtype; here it computes them in fp64
    too."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
