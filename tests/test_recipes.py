"""The shipped recipes: every one parses, is rehearsed without weights, and (slow) runs two steps of every stage."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import align
from align.ground.errors import InputError
from align.pipeline import load
from align.store import Store
from tests.conftest import QUICK, ROOT, copy_project, set_in_recipe, write_rows, write_world

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
HUB = [("meta-llama/Llama-3.1-8B", "llama", {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32})]
HUB += [
    ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14})
]
"""The models of the hub that recipes name, and their shapes as far as planning reads them."""


def fake_hub(cache: Path, model: str, files: Path | dict[str, Any]) -> None:
    """`model` in a hub cache: the files of a folder, or a config.json of a shape beside the weights and tokenizer of a
    small model."""
    place = cache / f"models--{model.replace('/', '--')}"
    snapshot = place / "snapshots" / ("0" * 40)
    if isinstance(files, Path):
        shutil.copytree(files, snapshot)
    else:
        snapshot.mkdir(parents=True)
        of_shape(snapshot, files)
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0" * 40)


def of_shape(folder: Path, config: dict[str, Any]) -> None:
    """What planning reads of a model."""
    shutil.copytree(ROOT / "data/tiny-base", folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 1024, **config}))


def own_data(folder: Path) -> None:
    """The files that recipes for a user's own data expect beside them."""
    write_world(folder).unlink()
    shutil.copy(folder / "pairs.jsonl", folder / "heldout-pairs.jsonl")
    write_rows(folder / "heldout.jsonl", [{"prompt": f"What is {i} plus {i}?"} for i in range(8)])
    shutil.copy(folder / "sft.jsonl", folder / "more.jsonl")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Every recipe with its data and base, of which only the shape is there."""
    copy_project(tmp_path)
    own_data(tmp_path / "recipes")
    (tmp_path / "data/tiny-base").mkdir()
    of_shape(tmp_path / "data/tiny-base", {"model_type": "llama", "max_position_embeddings": 256})
    for model, kind, shape in HUB:
        fake_hub(tmp_path / "hub", model, {"model_type": kind, "max_position_embeddings": 32768, **shape})
    return tmp_path


def dry_run(project: Path, recipe: Path) -> tuple[list[str], list[str]]:
    """(the plan's lines, libraries of models that were imported) of `align run RECIPE --dry-run` in a process of its
    own."""
    program = f"""
import json, sys
from align.cli import dispatch
dispatch(["run", {str(project / "recipes" / recipe.name)!r}, "--dry-run", "--store", {str(project / "store")!r}])
print(json.dumps(sorted({{"peft"}} & set(sys.modules))))
"""
    environment = os.environ | {"HF_HUB_CACHE": str(project / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    *lines, heavy = done.stdout.splitlines()
    return lines[: lines.index("")], json.loads(heavy)  # the memory plan follows


OFTEN = ("laptop-0.5b", "expert-iteration")


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(path, id=path.stem, marks=() if path.stem in OFTEN else pytest.mark.slow) for path in RECIPES],
)
def test_every_recipe_is_planned(project: Path, recipe: Path):
    """One line per stage, in order, each with its reason, also of those that wait for one before them. Nothing is
    stored or refused, and no model is made."""
    plan = load(recipe)
    lines, heavy = dry_run(project, recipe)
    assert heavy == []
    assert [line.partition(":")[0] for line in lines] == [f"{plan.name}/{stage}" for stage in plan.stages]
    assert {line.partition(": ")[2] for line in lines} == {"run, nothing has its name yet"}
    assert not (project / "store").exists()


def test_the_quickstart_says_what_each_stage_is_for():
    """A comment beside its name; negative control: settings, some of which have one, are no stages."""
    path = ROOT / "recipes/quickstart.yaml"
    said = re.findall(r"^  (\w+): # \w.{20,}$", path.read_text(), re.MULTILINE)
    assert said == list(load(path).stages) and "max_steps" not in said


def test_planning_looks_at_the_inputs(project: Path):
    """Negative control: without its data, or without its base, a recipe is refused."""
    recipe = project / "recipes/laptop-0.5b.yaml"
    (recipe.parent / "pairs.jsonl").unlink()
    with pytest.raises(AssertionError, match=r"stages\.reward\.data: there is no file .*pairs\.jsonl"):
        dry_run(project, recipe)
    own_data(recipe.parent)
    shutil.rmtree(project / "hub/models--Qwen--Qwen2.5-0.5B-Instruct")
    nowhere = (
        r"base: Qwen/Qwen2\.5-0\.5B-Instruct is neither a folder here, nor a model artifact of this store, nor a model"
    )
    with pytest.raises(AssertionError, match=nowhere):
        dry_run(project, recipe)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_misspelt_key_is_named(tmp_path: Path, recipe: Path):
    """Every recipe is read strictly: one letter too few anywhere is one message with file, line, key and the nearest
    one."""
    lines = recipe.read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if line.lstrip().startswith("data: "))
    stage = next(name for name, entry in load(recipe).stages.items() if hasattr(entry.config, "data"))
    lines[at] = lines[at].replace("data: ", "dat: ")
    wrong = tmp_path / recipe.name
    wrong.write_text("\n".join(lines))
    with pytest.raises(InputError) as error:
        load(wrong)
    kind = load(recipe).stages[stage].kind
    assert (
        f"{wrong}:{at + 1}: stages.{stage}.dat is not a setting of {kind}; did you mean data?"
        in str(error.value).splitlines()
    )


@pytest.mark.parametrize("name", ["iterated-dpo", "expert-iteration"])
def test_what_recipes_share_is_trained_once(name: str):
    """They say that their first stages are the quickstart's, which holds as long as all settings are."""
    quickstart, other = (load(ROOT / "recipes" / f"{n}.yaml").stages for n in ("quickstart", name))
    for stage in ("sft", "pairs", "reward"):
        ours, theirs = (stages[stage].config.model_dump(exclude={"name"}) for stages in (quickstart, other))
        assert ours == theirs, stage


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "model"),
    [("clean-data.yaml", HUB[1][0]), ("laptop-0.5b.yaml", HUB[1][0]), ("qlora-8b-24gb.yaml", HUB[0][0])],
)
def test_recipes_for_own_data_run(
    project: Path, trained: Any, recipe: str, model: str, monkeypatch: pytest.MonkeyPatch
):
    """Two steps of every stage on a tiny model in the named one's place: quantised where the recipe says so, the
    numbers as they are."""
    trained.store.materialise(trained.made["pretrain"], project / "tiny", "model")
    shutil.rmtree(project / "hub")
    fake_hub(project / "hub", model, project / "tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(project / "hub"))
    path = project / "recipes" / recipe
    plan = load(path)
    small = QUICK | {
        "stages.report.max_new_tokens": 8,
        "stages.ppo.max_new_tokens": 8,
        "stages.reward.centre_max_new_tokens": 8,
    }
    small = {key: value for key, value in small.items() if key == "threads" or key.split(".")[1] in plan.stages}
    small |= {"optimizer": "adamw_8bit"} if "optimizer: paged" in path.read_text() else {}  # which is for GPUs
    made = align.run(set_in_recipe(path, small), Store(project / "store"))
    assert list(made) == list(plan.stages)
    wanted = "nf4" if recipe.startswith("qlora") else None
    assert {a.base["quantize"] for a in made.values() if a.base} == {wanted}
    assert "merged" not in made or made["merged"].metrics["verdict"] in ("equal", "close")
