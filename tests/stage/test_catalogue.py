"""A stage is its own file and a line of the catalogue: one that is thrown away after the test runs in a recipe, has
help, flags, a dry run, a memory plan and a model card, and nothing else of Align is told of it."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import align
from align import evaluate
from align.cli import dispatch
from align.data.formats import read_prompts
from align.exchange.card import card
from align.ground.errors import InputError
from align.pipeline import load
from align.recipe import Base, StageConfig, parse_flags
from align.stage import catalogue, trained_on
from align.stage.command import next_command, started_from
from align.stage.describe import nothing_to_store
from align.store import Artifact, Store
from tests.conftest import ROOT, write_rows

MURMUR = '''"""Fine-tuning in a low voice.  `python -m align.murmur --base FOLDER --data talk.jsonl`"""

from __future__ import annotations

from pydantic import PositiveFloat

from align import memory, sft
from align.stage.command import main
from align.stage.describe import Stage
from align.stage.execute import execute
from align.store import Artifact, Store


class Config(sft.Config):
    """Settings of murmuring."""

    whisper: PositiveFloat = 0.5
    """How low the voice is."""


def run(config: Config, store: Store) -> Artifact:
    """Fine-tune in a low voice."""
    return execute(STAGE, config, store)


STAGE = Stage(
    "murmur",
    version=7,
    config=Config,
    inputs={"parent": ("adapter", "model")},
    work=sft.STAGE.work,
    makes=("adapter",),
    reads=sft.STAGE.reads,
    learns_from="examples",
    footprint=memory.Footprint(memory.kinds.sft, memory.rows.whole),
    does="fine-tuning in a low voice",
    tags=("low-voice",),
)

if __name__ == "__main__":
    main(STAGE, run, __doc__)
'''
RECIPE = f"""
base: {ROOT / "data/tiny-base"}
threads: 1
data: talk.jsonl
max_steps: 1
batch_size: 2
max_length: 64
stages:
  loud: {{kind: sft}}
  low: {{kind: murmur, whisper: 0.25}}
  whole: {{kind: merge, parent: low}}
"""


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file is there, and its line in the catalogue."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/murmur.py").write_text(MURMUR)
    monkeypatch.setattr(align, "__path__", [*align.__path__, str(tmp_path / "stages")])
    monkeypatch.setitem(catalogue.KINDS, "murmur", "fine-tune in a low voice")
    importlib.invalidate_caches()
    yield
    sys.modules.pop("align.murmur", None)
    vars(align).pop("murmur", None)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_rows(tmp_path / "talk.jsonl", [{"prompt": f"Say {i}.", "completion": f"{i}"} for i in range(8)])
    (tmp_path / "voices.yaml").write_text(RECIPE)
    return tmp_path / "voices.yaml"


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints."""
    capsys.readouterr()
    try:
        dispatch(list(map(str, words)))
    except SystemExit as done:
        assert done.code == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_help_and_flags(line: None, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`align --help` has its line, its own help its settings; a dry run of it alone takes flags and plans memory."""
    assert "  murmur              fine-tune in a low voice\n" in said(capsys, "--help")
    assert "How low the voice is." in said(capsys, "murmur", "--help")
    given = ["--base", ROOT / "data/tiny-base", "--data", recipe.parent / "talk.jsonl", "--store", tmp_path / "store"]
    told = said(capsys, "murmur", *given, "--whisper", "0.25", "--dry-run", "--device", "cuda")
    assert "murmur: run, nothing has its name yet" in told and "memory on the GPU" in told


def test_a_recipe_runs_it(line: None, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside an SFT of the same settings: the same plan of memory, the same weights, another artifact; the next stage
    takes what it makes; its card and the book of what was trained on know it."""
    store = Store(tmp_path / "store")
    planned = said(capsys, "run", recipe, "--store", store.path, "--dry-run", "--device", "cuda")
    sizes = {words[0]: words[1:3] for words in map(str.split, planned.splitlines()) if words[2:3] == ["MiB"]}
    assert sizes["voices/low"] == sizes["voices/loud"]
    assert "voices/whole: run" in planned and "voices/whole" in sizes

    made = align.run(recipe, store, until="low")
    low, loud = made["low"], made["loud"]
    assert (low.stage, low.kind, low.config["whisper"]) == ("murmur", "adapter", 0.25)
    assert low.manifest["version"] == 7 and low.digest != loud.digest
    weights = "adapters/0/adapter_model.safetensors"
    assert low.files[weights] == loud.files[weights]
    assert align.run(recipe, store, until="low") == made
    assert "voices/low: skip" in said(capsys, "run", recipe, "--store", store.path, "--dry-run", "--until", "low")

    text = card(store, low, "low")
    assert "made by Align's `murmur` stage: fine-tuning in a low voice." in text
    assert tags_of(text) == ["align", "lora", "low-voice"] and tags_of(card(store, loud, "loud"))[-1] == "sft"
    assert seen(store, low, recipe.parent / "talk.jsonl") > 0


def test_what_learns_from_rewards_is_not_measured_on_them(line: None, recipe: Path, tmp_path: Path) -> None:
    """Reinforcement learning is what a stage says it is."""
    store = Store(tmp_path / "store")
    made = align.run(recipe, store, until="low")["low"]
    prompts = read_prompts(recipe.parent / "talk.jsonl", "error")
    assert trained_on.leave_out(store, [made], list(prompts), drop=False)[1] == []
    module = importlib.import_module("align.murmur")
    module.STAGE = replace(module.STAGE, learns_from="rewards")
    with pytest.raises(InputError, match="voices/low was trained on this prompt"):
        trained_on.leave_out(store, [made], list(prompts), drop=False)
    assert tags_of(card(store, made, "low"))[-2:] == ["low-voice", "rlhf"]


def test_hand_over_is_checked(line: None, recipe: Path) -> None:
    """What it makes is what it says."""
    recipe.write_text(RECIPE + "  best: {kind: ppo, parent: loud, reward: low, max_new_tokens: 8}\n")
    with pytest.raises(InputError, match="low makes an adapter artifact, but ppo needs reward there"):
        load(recipe)


def test_without_its_line_there_is_no_stage(recipe: Path) -> None:
    """Negative control."""
    with pytest.raises(InputError, match="align has no command 'murmur'"):
        dispatch(["murmur"])
    with pytest.raises(InputError, match="murmur"):
        load(recipe)
    assert catalogue.find("murmur") is None


@pytest.mark.parametrize("name", [*catalogue.commands(), *catalogue.ELSEWHERE])
def test_every_line_has_its_stage(name: str) -> None:
    """Under its own name, with settings of its own module; what a recipe may name makes something and has a plan."""
    stage = catalogue.stage_of(name)
    assert stage.name == name and stage.config is catalogue.module_of(name).Config
    if name in catalogue.KINDS:
        assert stage.makes and stage.work is not nothing_to_store and stage.footprint and stage.inputs
    if name in catalogue.DATA:
        assert stage.makes == ("data",) and stage.work is not nothing_to_store
    if name in catalogue.STORES_NOTHING:
        assert not stage.makes and stage.work is nothing_to_store


def test_the_catalogue_imports_no_stage() -> None:
    """`align --help` and `import align` read it, so it imports nothing of Align when it is imported."""
    tree = ast.parse((ROOT / "align/stage/catalogue.py").read_text())
    found = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not [name for name in found if name and name.startswith("align")]


def tags_of(text: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith("tags: ")]
    tags: list[str] = json.loads(line.removeprefix("tags: "))
    return tags


def seen(store: Store, made: Artifact, file: Path) -> int:
    return trained_on.seen(store, [made], list(read_prompts(file, "error")), "prompts", {})[0]


def test_what_comes_next_of_rows_of_any_kind() -> None:
    """Cleaned rows may be pairs, which sft does not take; those that `pairs` makes are (negative control)."""
    made = cast(Artifact, SimpleNamespace(kind="data"))
    names = ("clean", "decontaminate", "convert", "split", "mix")
    of_any = {name: next_command("mine", made, catalogue.stage_of(name).feeds, "--parent SFT") for name in names}
    assert {text.partition(", or ")[0] for text in of_any.values()} == {"next: align data inspect mine"}
    report = next_command("quickstart/report", cast(Artifact, SimpleNamespace(kind="report")), "", "")
    assert report == "next: align checkout quickstart/report DIR && python -m webbrowser DIR/report.html"
    of_pairs = next_command("mine", made, catalogue.stage_of("pairs").feeds, "--parent SFT")
    assert of_pairs == "next: python -m align.reward --parent SFT --data mine"


def test_what_comes_next_of_an_adapter() -> None:
    """One of demonstrations learns preferences; one that learnt them is measured. The command is one that is taken."""
    made = cast(Artifact, SimpleNamespace(kind="adapter"))
    said = {name: next_command("mine", made, catalogue.stage_of(name).feeds, "") for name in ("sft", "distill", "dpo")}
    first = "next: python -m align.dpo --parent mine --data pairs.jsonl, or align chat mine, or "
    assert said["sft"] == said["distill"] == f"{first}python -m align.merge mine --out DIR"
    command = said["dpo"].removeprefix("next: python -m align.evaluate ").partition(", or ")[0]
    taken = parse_flags(evaluate.Config, command.split(), prog="evaluate").config
    assert taken.compare == ["mine"] and taken.judges == {"NAME": "FILE.py:FUNCTION"}


@pytest.mark.parametrize(
    ("kind", "asked", "expected"),
    [
        ("data", {"parent": "my-sft", "base": None}, "next: python -m align.sft --parent my-sft --data mine"),
        ("data", {"base": Base(model="a b/c")}, "next: python -m align.sft --base 'a b/c' --data mine"),
        ("reward", {"parent": "my-sft"}, "align.ppo --parent my-sft --reward mine "),
        ("reward", {}, "align.ppo --parent SFT --reward mine "),
        ("adapter", {}, "next: python -m align.sft --parent mine --data pairs.jsonl, or align chat mine, or "),
    ],
)
def test_what_comes_next_starts_where_this_did(kind: str, asked: dict[str, Any], expected: str) -> None:
    start = started_from(cast(StageConfig, SimpleNamespace(**asked)))
    assert expected in next_command("mine", cast(Artifact, SimpleNamespace(kind=kind)), "sft", start)
