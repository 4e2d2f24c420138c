"""Prompts that a recipe holds out stay out of every stage, and what reinforcement learning trained on is not
measured."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from align import evaluate, ppo
from align.data.formats import read_conversations, read_prompts
from align.data.split import opening, place
from align.ground.errors import InputError
from align.pipeline import load
from align.recipe import parse_flags
from align.rl import setup
from align.rl.reward_gate import check_rewards
from align.stage import reading
from align.stage.question import prepare
from align.stage.trained_on import seen
from align.stage.workbench import Workbench
from align.store import Artifact
from tests.conftest import Pipeline, set_in_recipe, write_rows
from tests.stages.helpers import run, settings

READ = ("sft", "reward", "dpo")


def sides(pipeline: Pipeline, **changes: Any) -> dict[str, tuple[set[str], set[str]]]:
    """Openings of what each stage trains on, and of what it measures."""
    found = {}
    for stage in READ:
        job = prepare(
            importlib.import_module(f"align.{stage}").STAGE, settings(pipeline, stage, **changes), pipeline.store
        )
        found[stage] = tuple({opening(r) for r in side} for side in reading.split(Workbench(job)))
    bench = Workbench(prepare(ppo.STAGE, settings(pipeline, "ppo", **changes), pipeline.store))
    found["ppo"] = (
        {
            opening(p)
            for p in setup.prompts_that_fit(
                bench, bench.load_renderer(), reading.without_held_out(bench, reading.read(bench, "data"))[0]
            )[0]
        },
        set(),
    )
    return found  # type: ignore[return-value]


def test_a_share_is_held_out_of_every_stage(pipeline: Pipeline) -> None:
    """The same prompts, by their hash, which the stages that measure pairs or losses measure. Negative control: without
    it ppo trains on prompts that reward holds out."""
    found = sides(pipeline, hold_out=0.3)
    out = {opening(r) for r in read_conversations(pipeline.recipe.with_name("sft.jsonl")) if place(opening(r)) < 0.3}
    assert all(train and not train & out for train, _ in found.values())
    assert {stage: measured for stage, (_, measured) in found.items()} == {
        **dict.fromkeys(READ, out),
        "ppo": set(),
    } and len(out) > 5
    without = sides(pipeline)
    assert without["ppo"][0] & out and without["ppo"][0] & without["reward"][1]


def sides_with_file(pipeline: Pipeline, rows: list[dict[str, Any]]) -> dict[str, tuple[set[str], set[str]]]:
    return sides(pipeline, hold_out=str(write_rows(pipeline.recipe.with_name("out.jsonl"), rows)))


def test_prompts_of_a_file_are_held_out_of_every_stage(pipeline: Pipeline) -> None:
    """And a share of the others is measured as before."""
    prompts = list(read_prompts(pipeline.recipe.with_name("prompts.jsonl")))[:3]
    out = {opening(p) for p in prompts}
    found = sides_with_file(pipeline, [{**p.row(), "answer": "for a judge"} for p in prompts])
    assert all(not (train | measured) & out for train, measured in found.values())
    assert len(found["ppo"][0]) == 5 and all(measured for stage, (_, measured) in found.items() if stage != "ppo")
    with pytest.raises(InputError, match=r"hold_out leaves nothing to train on of 8 records"):
        run(pipeline, "ppo", hold_out=str(pipeline.recipe.with_name("prompts.jsonl")))


def test_what_was_left_out_is_counted_and_asked_for(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(pipeline, "sft", hold_out=0.3, name="held")
    left = made.metrics["hold_out/records"]
    assert f"held: hold_out: {left} of 40 records are left out" in capsys.readouterr().err and 5 < left < 20
    assert made.config["hold_out"] == 0.3 and "hold_out/records" not in pipeline.made["sft"].metrics
    file = str(write_rows(pipeline.recipe.with_name("out.jsonl"), [{"prompt": "Nobody asks this."}]))
    named = run(pipeline, "sft", hold_out=file, name="named")
    assert (
        named.metrics["hold_out/records"] == 0
        and named.data.keys() == {"data", "hold_out"}
        and named.digest != made.digest
    )


def test_in_recipes_and_on_the_command_line(pipeline: Pipeline) -> None:
    """Beside `stages` it is for every stage that trains; a flag may be a number or a file; beside eval_fraction it is
    refused."""
    recipe = load(set_in_recipe(pipeline.recipe, {"hold_out": 0.2}))
    assert [stage.config.hold_out for stage in recipe.stages.values()] == [0.2] * 5
    words = ["--base", "x", "--reward", "r", "--data", "d", "--hold_out"]
    for text, value in (("0.2", 0.2), ("out.jsonl", "out.jsonl")):
        assert parse_flags(ppo.Config, [*words, text], prog="ppo").config.hold_out == value
    with pytest.raises(InputError, match="--hold_out: expected a number above 0 and below 1, text or null, found"):
        parse_flags(ppo.Config, [*words, "1.5"], prog="ppo")
    with pytest.raises(InputError, match="eval_fraction has no effect: hold_out says which prompts are held out"):
        run(pipeline, "dpo", hold_out=0.2, eval_fraction=0.1)


# ---- what is measured ------------------------------------------------------------------------------------------------


def measured(pipeline: Pipeline, name: str, **changes: Any) -> evaluate.Config:
    fixed: dict[str, Any] = {"max_new_tokens": 4, "precision": "fp32", "threads": 1, "include_base": False}
    return evaluate.Config(
        **{"compare": [name], "data": pipeline.recipe.with_name("prompts.jsonl"), **fixed, **changes}
    )


def test_what_ppo_trained_on_is_not_measured(
    pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One rollout of eight samples asks all but the held-out prompts. They are noted, refused before a base is loaded,
    or left out; so they are of what was made from it. Negative control: sft, which is no reinforcement learning."""
    made = run(pipeline, "ppo", hold_out=0.3, name="tiny/held")
    prompts = {opening(p): p for p in read_prompts(pipeline.recipe.with_name("prompts.jsonl"))}
    out = {o for o in prompts if place(o) < 0.3}
    noted = [json.loads(line) for line in pipeline.store.read(made, "trained_on.jsonl").splitlines()]
    assert noted == sorted(prompts.keys() - out) and out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("align.stage.workbench.Workbench.load_base", lambda *args: pytest.fail("the base was loaded"))
        with pytest.raises(
            InputError, match=r"prompts\.jsonl:\d+: tiny/held was trained on this prompt, one of \d of 8 here"
        ):
            evaluate.run(measured(pipeline, "tiny/held"), pipeline.store)
    left = evaluate.run(measured(pipeline, "tiny/held", trained_on="drop"), pipeline.store)
    rows = pipeline.store.read(left, "samples.jsonl").splitlines()
    assert len(rows) == len(out) and left.metrics["trained_on/prompts"] == 8 - len(out)
    told = f"{8 - len(out)} of 8 prompts were left out: tiny/held was trained on them"
    page, table = (pipeline.store.read(left, file).decode() for file in ("report.html", "table.txt"))
    assert told in capsys.readouterr().err and f"{told}." in page and f"{told}." in " ".join(table.split())
    two = write_rows(tmp_path / "two.jsonl", [{"prompt": "Hi?"}, prompts[noted[0]].row()])
    evaluate.run(measured(pipeline, "tiny/held", data=two, trained_on="drop"), pipeline.store)
    assert "1 of 2 prompts was left out: tiny/held was trained on it\n" in capsys.readouterr().err
    run(pipeline, "dpo", parent="tiny/held", name="tiny/after")
    with pytest.raises(InputError, match="tiny/held was trained on this prompt"):
        evaluate.run(measured(pipeline, "tiny/after"), pipeline.store)
    untouched = evaluate.run(measured(pipeline, "tiny/sft"), pipeline.store)
    assert "trained_on/prompts" not in untouched.metrics  # and so of what the page says
    assert "left out" not in pipeline.store.read(untouched, "report.html").decode()
    same: dict[str, Any] = {
        k: getattr(made, k)
        for k in ("kind", "stage", "version", "config", "parents", "base", "text", "data", "metrics")
    }
    folder = shutil.copytree(pipeline.store.folder(made), tmp_path / "older")
    (folder / "trained_on.jsonl").unlink()
    pipeline.store.tag("tiny/older", pipeline.store.put(folder, **same))
    capsys.readouterr()
    evaluate.run(measured(pipeline, "tiny/older"), pipeline.store)
    assert "tiny/older does not say which prompts it was trained on" in capsys.readouterr().err
    only = write_rows(tmp_path / "only.jsonl", [prompts[noted[0]].row()])
    with pytest.raises(InputError, match=r"one of 1 of 1 here.*Take others;"):
        evaluate.run(measured(pipeline, "tiny/held", data=only, trained_on="drop"), pipeline.store)


def test_what_supervised_stages_trained_on_is_told(
    pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps of eight records train on sixteen prompts, an epoch on all that are not held out. What is measured on
    some of them is measured, and says so: in the table, in the manifest, and to the gate. Negative control: prompts
    that nobody trained on."""
    data = {opening(r): r for r in read_conversations(pipeline.recipe.with_name("sft.jsonl"))}
    few = noted_by(pipeline, pipeline.made["sft"])
    assert len(few) == 16 and few < data.keys()
    every = noted_by(pipeline, run(pipeline, "sft", max_steps=None, eval_fraction=0.2, name="tiny/every"))
    assert every == {o for o in data if place(o) >= 0.2} != data.keys()

    (file := tmp_path / "both.jsonl").write_text(
        pipeline.recipe.with_name("prompts.jsonl").read_text() + '{"prompt": "Hi?"}\n'
    )
    capsys.readouterr()
    found = evaluate.run(
        measured(pipeline, "tiny/every", data=file, texts=pipeline.recipe.with_name("sft.jsonl")), pipeline.store
    )
    asked = {opening(p) for p in read_prompts(file)}
    lines = [
        f"{len(asked & every)} of 9 prompts were trained on by tiny/every",
        f"{len(every)} of 40 texts, by their prompts, were trained on by",
    ]
    table, said = pipeline.store.read(found, "table.txt").decode(), capsys.readouterr().err
    table = " ".join(table.split())  # its notes are wrapped
    assert all(line in table and line in said for line in lines) and len(asked & every) > 1
    assert found.metrics["trained_on/data"] == len(asked & every) and found.metrics["trained_on/texts"] == len(every)

    _, told = seen(pipeline.store, [], [*read_prompts(file)], "prompts", {"a": asked, "b": asked, "c": {*[*asked][:1]}})
    assert told == ["9 of 9 prompts were trained on by a, b", "1 of 9 prompts was trained on by c"]

    others = write_rows(tmp_path / "others.jsonl", [{"prompt": "Hi?"}])
    clean = evaluate.run(measured(pipeline, "tiny/every", data=others), pipeline.store)
    assert (
        "trained on" not in pipeline.store.read(clean, "table.txt").decode() and "trained_on/data" not in clean.metrics
    )

    reward = run(
        pipeline, "reward", parent="tiny/every", eval_fraction=None, eval_data=pipeline.recipe.with_name("pairs.jsonl")
    )
    assert reward.metrics["trained_on/held_out"] == 40  # its own pairs are among them, too
    (note,) = check_rewards({"reward": reward}, {}, trust=True)
    assert "; 40 of these pairs have a prompt that was trained on" in note
    assert "trained on." not in "".join(check_rewards({"reward": pipeline.made["reward"]}, {}, trust=True))


def noted_by(pipeline: Pipeline, made: Artifact) -> set[str]:
    return set(map(json.loads, pipeline.store.read(made, "trained_on.jsonl").splitlines()))
