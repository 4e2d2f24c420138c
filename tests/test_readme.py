"""The README is short and true: its rows are read, its recipe is a recipe, and its commands and Python run, as those
of the pages that it leads to."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from align import cli, pipeline
from align.data import formats, judged
from align.ground.errors import InputError
from align.stage import catalogue
from tests import pages
from tests.conftest import ROOT, Pipeline, write_rows
from tests.pages import PAGES, Block, blocks, text_of
from tests.test_recipes import fake_hub

# runpy, about commands that run in this process one after the other
pytestmark = pytest.mark.filterwarnings("ignore:.* found in sys.modules after import of package:RuntimeWarning")

README = text_of(pages.README)
BASE = "Qwen/Qwen2.5-0.5B-Instruct"
READERS = {
    "sft.jsonl": formats.read_conversations,
    "pairs.jsonl": formats.read_preferences,
    "prompts.jsonl": formats.read_prompts,
    "texts.jsonl": formats.read_texts,
    "labels.jsonl": judged.read_labelled(),
    "steps.jsonl": judged.read_steps("\n"),
}


# ---- short -----------------------------------------------------------------------------------------------------------


def test_it_takes_five_minutes():
    """Words between white space, as `wc -w` counts them, code and tables included."""
    assert len(README.split()) <= 1_200


def test_own_data_come_first():
    """Three commands, from a base to a policy, among the first words."""
    start = " ".join(README.split()[:250])
    assert all(
        f"python -m align.{stage} " in start and f"--name my-{stage}" in start for stage in ("sft", "reward", "ppo")
    )


def test_it_names_every_stage():
    named = [name for row in pages.rows(pages.section(README, "## Stages")) for name in pages.names(row[0])]
    assert sorted(named[:5]) == sorted(catalogue.DATA) and named[5:] == list(catalogue.KINDS)


# ---- examples are read -----------------------------------------------------------------------------------------------


def test_every_row_is_read(tmp_path: Path):
    """Each example row is a record of its kind, and of no other where keys differ."""
    in_tables = [(row[0], row[1].strip("`")) for row in pages.rows(README) if row[1].startswith("`{")]
    in_blocks = [(b.before, b.text) for page in PAGES for b in blocks(text_of(page)) if b.language == "jsonl"]
    shown = [(name, text) for said, text in in_tables + in_blocks for name in READERS if f"`{name}`" in said]
    assert len(shown) == len(in_tables + in_blocks)
    assert {name for name, _ in shown} == READERS.keys()
    for name, text in shown[::-1]:  # those of the README last
        (tmp_path / name).write_text(text)
        assert len(READERS[name](tmp_path / name)) == len(text.splitlines())
    with pytest.raises(InputError, match="completion"):
        formats.read_conversations(tmp_path / "pairs.jsonl")


def test_the_recipe_is_one(tmp_path: Path):
    (text,) = [block.text for block in blocks(README) if block.language == "yaml"]
    path = tmp_path / "helpful.yaml"
    path.write_text(text)
    assert list(pipeline.load(path).stages) == ["sft", "reward", "dpo", "ppo", "export", "report"]
    path.write_text(text.replace("beta", "betta"))
    with pytest.raises(
        InputError, match=r"helpful\.yaml:6: stages\.dpo\.betta is not a setting of dpo; did you mean beta\?"
    ):
        pipeline.load(path)


# ---- blocks run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(quick_store: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader sits: a checkout whose quickstart ran, data of the reader's own, the named base (a tiny one) in
    the hub's cache."""
    desk = tmp_path / "desk"
    shutil.copytree(quick_store.recipe.parents[1], desk)
    shutil.copy(desk / "data/quickstart/demos.jsonl", desk / "sft.jsonl")
    shutil.copy(desk / "data/quickstart/prompts.jsonl", desk / "prompts.jsonl")
    write_rows(desk / "pairs.jsonl", polite_pairs(desk / "prompts.jsonl"))
    fake_hub(tmp_path / "hub", BASE, desk / "data/tiny-base")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("ALIGN_STORE", raising=False)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.chdir(desk)
    return desk


def polite_pairs(prompts: Path) -> Iterator[dict[str, Any]]:
    """Polite answers and rude ones of as many tokens: soon learnt, so that PPO takes the reward model that comes of
    it."""
    polite_ones = ("Have a nice day!", "I hope this helps!", "You are always welcome!")
    ends = list(product(polite_ones, ("Even babies know this!", "You are really dumb!")))
    for row in map(json.loads, prompts.read_text().splitlines()):
        for polite, rude in 2 * ends:
            yield {
                "prompt": row["prompt"],
                "chosen": f"It is {row['answer']}. {polite}",
                "rejected": f"It is {row['answer']}. {rude}",
            }


def run_line(line: str) -> None:
    """One line of a shell block, in this process: importing torch for each of them would take most of the time."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":  # the targets exist; the quickstart itself is too long for here
        subprocess.run(["make", "--dry-run", "-C", ROOT, *words[1:]], check=True, capture_output=True)
    else:
        start = {"align": 1, "python": 2}[words[0]]
        cli.dispatch([words[start].removeprefix("align."), *words[start + 1 :]])


def run_block(block: Block) -> None:
    if block.language == "sh":
        for line in block.text.splitlines():
            run_line(line)
    else:
        done = subprocess.run([sys.executable, "-c", block.text], capture_output=True, text=True)
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


def test_every_block_runs(desk: Path):
    """In the order of the pages; the names and files that the text promises are there at the end."""
    for block in [block for page in PAGES for block in blocks(text_of(page))]:
        if block.language not in ("sh", "python") or "no-test" in block.tags:
            continue
        if block.tags:  # ```python judge.py is a file that later commands use
            (desk / block.tags[0]).write_text(block.text)
        else:
            run_block(block)
    refs = {path.name for path in (desk / ".align/refs").iterdir()}
    assert {"my-sft", "my-reward", "my-ppo", "my-dpo", "my-pairs", "quickstart"} <= refs
    assert (desk / "exported/model.safetensors").is_file() and (
        desk / "my-ppo-files/adapters/0/adapter_config.json"
    ).is_file()


def test_a_block_that_fails_is_found(desk: Path):
    """Negative control: an artifact and a name that are not there."""
    with pytest.raises(SystemExit, match="2"):
        run_line("align chat my-pppo  # a comment")
    with pytest.raises(AssertionError, match="ImportError"):
        run_block(Block("python", (), "from align import ppoo", ""))
