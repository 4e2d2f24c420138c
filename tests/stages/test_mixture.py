"""Several files as one data set: exact shares of what is trained on, whatever is held out; the run that one file of the
same rows gives; refused where a part of it has no effect or cannot be met."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from align import sft
from align.data.shapes.advice import in_recipe
from align.data.split import opening
from align.data.tools import mixing
from align.ground.errors import InputError
from align.pipeline import load
from align.recipe.mixture import MixedFile, sources
from align.stage import reading
from align.stage.ahead import dry_run
from align.stage.question import prepare
from align.stage.workbench import Workbench
from tests.conftest import Pipeline, write_rows
from tests.stages.helpers import run, settings

MESSAGES = [
    {"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"It is {i}."}]}
    for i in range(30)
]
"""Another shape than that of the recipe's own sft.jsonl."""


@pytest.fixture
def two(pipeline: Pipeline) -> tuple[str, str]:
    """The recipe's demonstrations, and a file of 30 dialogues."""
    b = write_rows(pipeline.recipe.with_name("b.jsonl"), MESSAGES)
    return str(pipeline.recipe.with_name("sft.jsonl")), str(b)


def workbench(pipeline: Pipeline, **changes: Any) -> Workbench:
    return Workbench(prepare(sft.STAGE, settings(pipeline, "sft", **changes), pipeline.store))


@pytest.mark.parametrize(
    ("given", "sizes", "counts"),
    [
        # 10,000 of b are 30 % of a pass, so a has 70 / 30 times as many
        ([MixedFile("a", weight=0.7), MixedFile("b", epochs=2, limit=5000)], [40_000, 9000], [23_333, 10_000]),
        ([MixedFile("a", weight=3), MixedFile("b", weight=1)], [60, 40], [60, 20]),  # a is the smaller for its share
        ([MixedFile("a"), MixedFile("b", epochs=2.5)], [7, 4], [7, 10]),
        ([MixedFile("a", weight=0.5), MixedFile("b"), MixedFile("c", weight=0.25)], [90, 20, 50], [40, 20, 20]),
    ],
)
def test_counts_by_hand(given: list[MixedFile], sizes: list[int], counts: list[int]) -> None:
    assert mixing.counts_of(given, sizes) == counts


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((None, 1e-4), r"b: its weight 0\.0001 beside 500 records of the others comes to no record\. Raise the weight"),
        ((1.0, 1e-4), r"b: its share, 0\.0001 of 500 rows, is less than one row\. Raise its weight"),
    ],
)
def test_a_share_without_a_record_is_refused(weights: tuple[float | None, float], message: str) -> None:
    """Negative control: one record is a share."""
    a, b = weights
    with pytest.raises(InputError, match=message):
        mixing.counts_of([MixedFile("a", weight=a), MixedFile("b", weight=b)], [500, 5])
    assert mixing.counts_of([MixedFile("a", weight=a), MixedFile("b", weight=0.002)], [500, 5]) == [500, 1]


def test_repeats_are_even() -> None:
    """17 of 5 records: each thrice, and two of them once more; a limit says how many those are."""
    taken = Counter(mixing.taken(MixedFile("a"), 5, 17, random.Random(0)))
    assert taken.total() == 17 and sorted(taken.values()) == [3, 3, 3, 4, 4]
    assert [*Counter(mixing.taken(MixedFile("a", limit=4), 50, 12, random.Random(0))).values()] == [3] * 4


def test_shares_are_exact_beside_what_is_held_out(
    pipeline: Pipeline, two: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same prompts are held out as of both files together, and none of them is trained on; the shares are those of
    what is left."""
    a, b = two
    plain = {opening(r) for r in reading.split(workbench(pipeline, data=[a, b], hold_out=0.3))[1]}
    bench = workbench(pipeline, data=[{"file": a, "weight": 0.5}, {"file": b, "limit": 10, "epochs": 2}], hold_out=0.3)
    train, held_out = reading.split(bench)
    assert {opening(r) for r in held_out} == plain and not plain & {opening(r) for r in train}
    of_b = [r for r in train if r.where.startswith(b)]
    assert Counter(Counter(r.where for r in of_b).values()) == {2: 10}
    assert len(train) - len(of_b) == 20 == len({r.where for r in train if r.where.startswith(a)})
    assert bench.left_out["mixed/data/1"] == 20 and bench.left_out["mixed/data/2"] == 20
    said = " ".join(capsys.readouterr().err.split())
    assert f"each pass takes 40 records: {a} 20 of " in said and "(50.00% of the pass)" in said
    again = workbench(pipeline, data=[{"file": a, "weight": 0.5}, {"file": b, "limit": 10, "epochs": 2}], hold_out=0.3)
    assert reading.split(again)[0] == train
    seeded = {"data": [{"file": a, "weight": 0.5}, {"file": b, "limit": 10, "epochs": 2}], "seed": 1}
    assert reading.split(workbench(pipeline, **seeded, hold_out=0.3))[0] != train  # negative control


def test_it_trains_as_one_file_of_the_same_rows_does(pipeline: Pipeline, two: tuple[str, str]) -> None:
    """The weights are those of the rows written into one file; other rows give others."""
    a, b = two
    drawn = sorted(random.Random(3).sample(range(30), 6))
    rows = [*map(json.loads, Path(a).read_text().splitlines()), *(MESSAGES[i] for i in drawn)]
    short = {"max_steps": 2, "batch_size": 8, "eval_data": str(write_rows(Path(a).with_name("e.jsonl"), MESSAGES[:3]))}
    one = run(pipeline, "sft", data=str(write_rows(Path(a).with_name("one.jsonl"), rows)), **short)
    mixed = run(pipeline, "sft", data=[a, {"file": b, "limit": 6}], **short)
    other = run(pipeline, "sft", data=[a, {"file": b, "limit": 7}], **short)

    def weights(artifact: Any) -> list[str]:
        return [f["sha256"] for name, f in sorted(artifact.files.items()) if name.endswith(".safetensors")]

    assert weights(one) == weights(mixed) != weights(other)
    assert mixed.data.keys() == {"data/1", "data/2", "eval_data"} and mixed.config["data"] == [{}, {"limit": 6}]
    assert (mixed.metrics["mixed/data/1"], mixed.metrics["mixed/data/2"]) == (len(rows) - 6, 6)


def test_each_file_may_call_its_columns_otherwise(pipeline: Pipeline, tmp_path: Path) -> None:
    """The weights are those of one file with our own names. Negative controls: a file that is told nothing of is
    refused with what is to be written for it, and a name that it lacks is refused where it is."""
    rows = [{"prompt": f"Which colour is ball {i}?", "completion": "It is red."} for i in range(12)]
    held = {"eval_data": str(write_rows(tmp_path / "e.jsonl", rows[:2]))}
    ours, theirs = {"Frage": "prompt", "Antwort": "completion"}, {"Asked": "prompt", "Said": "completion"}
    files = []
    for name, columns, some in (("a", ours, rows[:6]), ("b", theirs, rows[6:])):
        called = [{key: row[of] for key, of in columns.items()} for row in some]
        files.append(str(write_rows(tmp_path / f"{name}.jsonl", called)))
    a, b = files
    of_a, of_b = ({of: key for key, of in columns.items()} for columns in (ours, theirs))
    short = {"max_steps": 1, "batch_size": 4, **held}
    one = run(pipeline, "sft", data=str(write_rows(tmp_path / "one.jsonl", rows)), **short)
    mixed = run(pipeline, "sft", data=[{"file": a, "columns": of_a}, {"file": b}], columns=of_b, **short)
    assert mixed.config["data"] == [{"columns": of_a}, {}]
    weights = [{k: f["sha256"] for k, f in x.files.items() if k.endswith(".safetensors")} for x in (one, mixed)]
    assert weights[0] == weights[1]
    told = r"b.jsonl:1: .*`\{file: …, columns: \{.*\}\}` for this file in `data`"
    with in_recipe(), pytest.raises(InputError, match=told):
        reading.split(workbench(pipeline, data=[{"file": a, "columns": of_a}, b], **held))
    with pytest.raises(InputError, match=r'a.jsonl:1: columns.prompt names "Asked", which the row lacks'):
        reading.split(workbench(pipeline, data=[{"file": a, "columns": of_b}, b], columns=of_b, **held))
    with pytest.raises(InputError, match=r"a.jsonl: columns.promt: no row of ours has the key"):
        reading.split(workbench(pipeline, data=[{"file": a, "columns": {"promt": "Asked"}}, b], **held))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [{"file": "a", "wieght": 1}, "b"],
            "file 1 has wieght, which is none of file, weight, epochs, limit, columns.",
        ),
        ([{"file": "a", "weight": 0.5}], "weight has no effect: it is the only file"),
        ([{"file": "a", "weight": 0.5, "limit": 3}, "b"], "weight and limit both say"),
        ([{"file": "a", "weight": 0.5, "epochs": 3}, "b"], "weight and epochs both say"),
        ([{"file": "a", "weight": 1}, "b"], "leaves no share for b"),
        ([{"file": "a", "weight": -1}, {"file": "b", "weight": 1}], "weight is -1; expected a number above 0"),
        ([{"file": "a", "limit": 2.5}], "limit is 2.5; expected a whole number above 0"),
        ([{"file": "a", "epochs": True}], "epochs is True; expected a number above 0"),
        (["a", "a"], "a is named twice"),
        ([], "the list is empty"),
        ([{"limit": 3}], "file 1 names no file"),
        ([{"file": "a", "columns": "Q"}, "b"], "a: columns is Q; expected our keys and what the file calls them."),
        ([{"file": "a", "columns": {"prompt": 3}}], "a: columns is {'prompt': 3}; expected our keys"),
        ([{"file": "a", "columns": {3: "prompt"}}], "a: columns is {3: 'prompt'}; expected our keys"),
    ],
)
def test_what_says_nothing_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        sources(given)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"limit": 600}, "limit is 600, but it has .* so it has no effect"),
        ({"weight": 0.99}, "its weight 0.99 beside .* comes to .* and it has .* to train on"),
    ],
)
def test_what_cannot_be_met_is_found_before_a_run(
    pipeline: Pipeline, two: tuple[str, str], more: dict[str, Any], message: str
) -> None:
    a, b = two
    for found in (lambda c: dry_run.plan(sft.STAGE, c, pipeline.store), lambda c: sft.run(c, pipeline.store)):
        with pytest.raises(InputError, match=message):
            found(settings(pipeline, "sft", data=[{"file": b, **more}, a]))
    said = str(dry_run.plan(sft.STAGE, settings(pipeline, "sft", data=[a, {"file": b, "epochs": 2}]), pipeline.store))
    assert f"{len(Path(a).read_text().splitlines())} rows of" in said and "30 rows of" in said


def test_files_of_a_recipe_are_relative_to_it(pipeline: Pipeline, two: tuple[str, str]) -> None:
    recipe = load(pipeline.recipe, ["stages.sft.data=[{file: sft.jsonl, weight: 1}, {file: b.jsonl, weight: 1}]"])
    assert [source.file for source in recipe.stages["sft"].config.data] == [*two]
    with pytest.raises(InputError, match="sft makes an adapter artifact, but reward needs data there"):
        load(pipeline.recipe, ["stages.reward.data=[sft, pairs.jsonl]"])
