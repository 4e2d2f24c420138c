"""Data made of data in a recipe: what comes out is what a file of the same rows gives, with a history; done once, anew
where what it is made of changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import align
from align import sft
from align.cli.command import dispatch
from align.ground.errors import InputError
from align.pipeline import load
from align.store import Store
from tests.conftest import COLOURS, ROOT, THINGS, make_data, read_rows, write_rows

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FACTS = [{"prompt": f"Which colour is the {t}?", "completion": f"It is {c}."} for t in THINGS for c in COLOURS]
JUNK = [{"prompt": "Any offers?", "completion": "buy now " * 60}, FACTS[3], FACTS[4]]
MORE = [{"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "So."}]} for i in range(20)]
TRAINED = {"max_steps": 1, "batch_size": 4, "max_length": 96, "precision": "fp32", "threads": 1}
RECIPE = f"""
name: fresh
stages:
  clean: {{data: raw.jsonl, near: null}}
  apart: {{kind: decontaminate, data: clean, against: eval.jsonl, fuzzy: 1.0}}
  mix: {{data: [{{file: apart, weight: 0.75}}, {{file: more.jsonl, weight: 0.25}}]}}
  sft: {{data: mix, base: {ROOT / "data/tiny-base"}, {json.dumps(TRAINED)[1:-1]}}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "raw.jsonl", [*FACTS, *JUNK])
    write_rows(tmp_path / "more.jsonl", MORE)
    write_rows(tmp_path / "eval.jsonl", [{"question": "Which colour is the hat?"}])
    (tmp_path / "fresh.yaml").write_text(RECIPE)
    return tmp_path / "fresh.yaml"


def test_a_recipe_cleans_mixes_and_trains(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 40 facts and 3 rows of junk 32 stay that ask of no hat; a pass of them and a third as many others is 42 rows.
    The weights are those of a run on a file of these rows."""
    store = Store("store")
    dispatch(["run", str(recipe), "--dry-run", "--store", "store"])
    plan = capsys.readouterr().out
    assert "fresh/mix: run" in plan and "fresh/mix: data: still to be made" in plan and "fresh/clean: data: 43" in plan
    made = align.run(recipe, store)
    assert [made["clean"].metrics[name] for name in ("rows", "kept", "removed/exact_duplicate")] == [43, 40, 2]
    rows = [json.loads(line) for line in store.read(made["mix"], "data.jsonl").splitlines()]
    said = [row["messages"][0]["content"] for row in rows]
    kept = [fact for fact in FACTS if "hat" not in fact["prompt"]]
    assert len(rows) == 42 and sum(text.isdigit() for text in said) == 10 and said != sorted(said)
    assert {text for text in said if not text.isdigit()} == {fact["prompt"] for fact in kept}
    assert align.run(recipe, store) == made  # nothing is done twice

    history = store.lineage(made["sft"]).data["data"]
    assert history.artifact == made["mix"] and history.data["data/1"].artifact == made["apart"]
    assert history.data["data/1"].data["data"].artifact == made["clean"]
    capsys.readouterr()
    dispatch(["lineage", "fresh/sft", "--store", "store"])
    told = capsys.readouterr().out
    assert all(name in told for name in ("fresh/mix", "fresh/apart", "fresh/clean"))

    write_rows(Path("mixed.jsonl"), rows)
    by_hand = sft.run(sft.Config(base=ROOT / "data/tiny-base", data="mixed.jsonl", **TRAINED), store)  # type: ignore[arg-type]
    weights = "adapters/0/adapter_model.safetensors"
    assert by_hand.files[weights] == made["sft"].files[weights]

    write_rows(Path("eval.jsonl"), [{"question": "Which colour is the cup?"}])
    anew = align.run(recipe, store, until="mix")
    assert anew["clean"] == made["clean"] and anew["apart"] != made["apart"] and anew["mix"] != made["mix"]


def test_what_cannot_be_handed_over_is_told(recipe: Path) -> None:
    """A stage in a mixture that makes no data, or comes later."""
    for stage, message in (("sft", "comes later; move sft above mix"), ("mix", "is this stage itself")):
        with pytest.raises(InputError, match=message):
            load(recipe, [f"stages.mix.data=[{{file: {stage}, weight: 1}}, {{file: more.jsonl, weight: 1}}]"])
    recipe.write_text(RECIPE + "  again: {kind: clean, data: [clean, sft]}\n")
    with pytest.raises(InputError, match="sft makes an adapter artifact, but clean needs data there"):
        load(recipe)


def test_a_stage_is_not_weighed_as_on_a_command_line(recipe: Path) -> None:
    """`clean=1` would be any artifact of that name; of files it says the same as the long form (negative control)."""
    with pytest.raises(
        InputError, match=r"apart=3 is how a command line says it; here it is \{file: apart, weight: 3\}"
    ):
        load(recipe, ["stages.mix.data=[apart=3, more.jsonl=1]"])
    of_files = [
        load(recipe, [f"stages.mix.data=[{a}, {b}]"]).stages["mix"].config
        for a, b in (
            ("raw.jsonl=3", "more.jsonl=1"),
            ("{file: raw.jsonl, weight: 3}", "{file: more.jsonl, weight: 1}"),
        )
    ]
    assert of_files[0] == of_files[1]


def test_a_mixture_calls_stages_by_their_names(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not by their digests, nor by another recipe's name for the same rows; a file by its own (negative control)."""
    store = Store("store")
    store.tag("an-earlier-name", align.run(recipe, store, until="apart")["apart"])
    capsys.readouterr()
    align.run(load(recipe), Store("store"), until="mix")
    said = " ".join(capsys.readouterr().err.split())
    assert "data/1 (fresh/apart): " in said and "records: fresh/apart 32 of 32 (" in said
    assert "data/2 (" in said and "more.jsonl): 20 records" in said


def test_a_sweep_of_cleaning_reaches_the_mixture(recipe: Path) -> None:
    """Each variant is mixed from its own."""
    swept = load(recipe, sweeps=["stages.clean.exact=true,false"])
    assert [name for name in swept.stages if name.startswith("mix")] == ["mix.exact-true", "mix.exact-false"]
    assert swept.stages["mix.exact-false"].config.data[0].file == "apart.exact-false"  # type: ignore[attr-defined]


def test_what_cleaning_leaves_as_it_was_has_a_history_too(recipe: Path) -> None:
    """Two artifacts of one content: each comes from the other's data once, and what is made of it from the later."""
    first = make_data("clean", "raw.jsonl", "--name", "first")
    second = make_data("clean", "first", "--name", "second")
    third = make_data("convert", "second", "--name", "third")
    store = Store(None)
    assert second.metrics["kept"] == second.metrics["rows"] and second.files["data.jsonl"] == first.files["data.jsonl"]
    assert store.lineage(third).data["data"].artifact == second
    assert store.lineage(second).data["data"].artifact == first and store.lineage(first).data == {}
    assert read_rows(store.folder(second) / "aside.jsonl") == []
