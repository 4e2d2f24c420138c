"""Sweeps: which runs come of them, what they are called, and what each takes; against lists written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent

import pytest

from align.ground.errors import InputError
from align.recipe import Recipe, load_recipe
from align.recipe.sweep import RUNS_LIMIT, slugs
from align.store.read import is_name
from tests.recipe.kinds import KINDS

RECIPE = """
    name: q
    seed: 7
    base: x
    stages:
      sft:    {data: sft.jsonl}
      dpo:    {parent: sft, data: p.jsonl, beta: {sweep: [0.05, 0.1, 0.2]}}
      after:  {kind: dpo, parent: dpo, data: p.jsonl}
      report: {kind: evaluate, compare: [sft, dpo, other/x]}
"""
PLAIN = "stages.dpo.beta=0.1"

Read = Callable[..., Recipe]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    monkeypatch.chdir(tmp_path)

    def read(text: str = RECIPE, overrides: Sequence[str] = (), sweeps: Sequence[str] = ()) -> Recipe:
        Path("r.yaml").write_text(dedent(text).lstrip("\n"), encoding="utf-8")
        return load_recipe("r.yaml", KINDS, overrides, sweeps)

    return read


def taken(recipe: Recipe) -> dict[str, list[str]]:
    return {name: [n for names in run.inputs.values() for n in names] for name, run in recipe.stages.items()}


def told(read: Read, text: str = RECIPE, **laid: Sequence[str]) -> list[str]:
    with pytest.raises(InputError) as error:
        read(text, **laid)
    return str(error.value).split("\n")


def test_a_swept_stage_has_variants_and_so_has_what_builds_on_it(read: Read) -> None:
    """sft is shared, `after` follows each variant, the report compares them all. Names fit the store."""
    recipe = read()
    assert taken(recipe) == {
        "sft": [],
        "dpo.beta-0.05": ["sft"],
        "dpo.beta-0.1": ["sft"],
        "dpo.beta-0.2": ["sft"],
        "after.dpo.beta-0.05": ["dpo.beta-0.05"],
        "after.dpo.beta-0.1": ["dpo.beta-0.1"],
        "after.dpo.beta-0.2": ["dpo.beta-0.2"],
        "report": ["sft", "dpo.beta-0.05", "dpo.beta-0.1", "dpo.beta-0.2"],
    }
    runs = recipe.stages
    assert [run.config.beta for run in runs.values() if run.stage == "dpo"] == [0.05, 0.1, 0.2]
    assert runs["after.dpo.beta-0.2"].config.beta == 0.1, "the stage's own default"
    assert runs["report"].config.compare == ["sft", "dpo.beta-0.05", "dpo.beta-0.1", "dpo.beta-0.2", "other/x"]
    assert runs["dpo.beta-0.1"].config.name == "q/dpo.beta-0.1" and recipe.is_swept
    assert all(is_name(run.config.name) for run in runs.values())


def test_without_a_sweep_nothing_is_named_otherwise(read: Read) -> None:
    """The control; --set of one value takes the place of a sweep."""
    recipe = read(overrides=[PLAIN])
    assert list(recipe.stages) == ["sft", "dpo", "after", "report"] and not recipe.is_swept
    assert read(sweeps=[PLAIN]).stages == recipe.stages


def test_the_command_line_sweeps_as_the_file_does(read: Read) -> None:
    same = read(RECIPE.replace("{sweep: [0.05, 0.1, 0.2]}", "0.3"), sweeps=["stages.dpo.beta=0.05,0.1,0.2"])
    assert same.stages == read().stages
    assert read(sweeps=["stages.dpo.beta=0.05,0.1,0.3"]).stages != same.stages


def test_beside_stages_the_recipe_runs_once_for_each_value(read: Read) -> None:
    """Each value has a folder of names; the report of each compares its own, by names that are alike."""
    recipe = read(overrides=[PLAIN, "stages.sft.seed=0"], sweeps=["seed=1,2"])
    assert taken(recipe) == {
        "sft": [],
        "seed-1/dpo": ["sft"],
        "seed-2/dpo": ["sft"],
        "seed-1/after": ["seed-1/dpo"],
        "seed-2/after": ["seed-2/dpo"],
        "seed-1/report": ["sft", "seed-1/dpo"],
        "seed-2/report": ["sft", "seed-2/dpo"],
    }
    assert [run.config.seed for run in recipe.stages.values()] == [0, 1, 2, 1, 2, 1, 2]


def test_several_sweeps_are_their_product(read: Read) -> None:
    """Equal settings of two stages are told apart by the stage where one run has both, and a run that has one is called
    as without the other sweep; what depends on neither is one run."""
    recipe = read(sweeps=["seed=1,2", "stages.after.beta=1,2"])
    assert [name for name, run in recipe.stages.items() if run.stage == "dpo"] == [
        f"seed-{seed}/dpo.beta-{beta}" for seed in (1, 2) for beta in (0.05, 0.1, 0.2)
    ]
    after = [name for name, run in recipe.stages.items() if run.stage == "after"]
    assert len(after) == 2 * 3 * 2 and "seed-2/after.dpo.beta-0.2.beta-1" in after
    assert recipe.stages["seed-2/after.dpo.beta-0.2.beta-1"].inputs == {"parent": ("seed-2/dpo.beta-0.2",)}
    assert len(recipe.stages["seed-1/report"].inputs["compare"]) == 1 + 3


def test_parents_and_data_can_be_swept(read: Read) -> None:
    recipe = read(overrides=[PLAIN], sweeps=["stages.after.parent=sft,dpo", "stages.sft.data=a/x.jsonl,b/x.jsonl"])
    runs = {name: run for name, run in recipe.stages.items() if run.stage == "after"}
    assert {name: run.inputs["parent"] for name, run in runs.items()} == {
        f"after.sft.data-{data}-x.jsonl.parent-{parent}": (
            f"{parent if parent == 'sft' else 'dpo.sft'}.data-{data}-x.jsonl",
        )
        for data in ("a", "b")
        for parent in ("sft", "dpo")
    }
    assert recipe.stages["sft.data-b-x.jsonl"].config.data == "b/x.jsonl"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.05, 1e-5, -0.5, 0.5], ["0.05", "1e-05", "-0.5", "0.5"]),
        ([1e30, 1e-30, "some+more"], ["1e30", "1e-30", "some-more"]),
        ([True, None, "plain"], ["true", "null", "plain"]),
        (["../a.jsonl", "data/b.jsonl"], ["a.jsonl", "b.jsonl"]),
        (["x/a", "y/a"], ["x-a", "y-a"]),
        ([["q_proj"], ["q_proj", "v_proj"]], ["q_proj", "q_proj-v_proj"]),
        (["é", "è"], ["1", "2"]),
        (["A", "a"], ["1", "2"]),  # one file on some systems
        (["x" * 41, "y"], ["1", "2"]),
    ],
)
def test_values_in_names(values: list[object], expected: list[str]) -> None:
    assert slugs(values) == expected
    assert all(is_name(f"r/s.k-{slug}") for slug in expected)


def test_mistakes_are_told_with_their_line(read: Read) -> None:
    """Once, though every run of the stage makes them."""
    dpo = "beta: {sweep: [0.05, 0.1, 0.2]}"
    assert told(read, RECIPE.replace("0.05", "-1")) == [
        "r.yaml:6: stages.dpo.beta: expected a number above 0, found -1."
    ]
    assert told(read, RECIPE.replace("p.jsonl, beta", "p.jsonl, betta: 1, beta")) == [
        "r.yaml:6: stages.dpo.betta is not a setting of dpo; did you mean beta?"
    ]
    assert told(read, RECIPE.replace("[0.05, 0.1, 0.2]", "0.05")) == [
        "r.yaml:6: stages.dpo.beta: expected a number above 0, found a mapping with sweep. A sweep is of a list, such "
        "as {sweep: [1, 2]}."
    ]
    for swept, message in {
        "kind: {sweep: [dpo, ipo]}": "kind: it cannot be swept; write a stage for each kind.",
        "beta: {sweep: []}": "beta: a sweep of no values; expected a list such as {sweep: [0.05, 0.1]}.",
        "beta: {sweep: [1, 1.0]}": "beta: the sweep has 1 twice; name each value once.",
        "adapter: {sweep: [{rank: 1}], alpha: 2}": "adapter: beside a sweep stands alpha; sweep the settings of a "
        "group one by one.",
        "threads: {sweep: [1, 2]}": "threads: it cannot be swept, as it changes nothing that comes out; give it one "
        "value.",
    }.items():
        assert f"r.yaml:6: stages.dpo.{message}" in told(read, RECIPE.replace(dpo, swept))


def test_what_cannot_be_is_refused(read: Read) -> None:
    assert told(read, overrides=["stages.dpo.beta=0.1", "stages.after.beta=0.1"], sweeps=["beta=1,2"]) == [
        "--set beta=1,2: beta: no stage takes it, as each that has it sets its own. Remove it, or set it there."
    ]
    assert told(read, sweeps=[f"stages.sft.seed={','.join(map(str, range(RUNS_LIMIT)))}"]) == [
        f"r.yaml: its sweeps are more than 200 runs (stages.sft.seed has {RUNS_LIMIT} values, stages.dpo.beta has 3 "
        "values), and a recipe has at most 200. Give fewer values, or sweep one setting after the other."
    ]
    taken = RECIPE.replace("after: ", "dpo.beta-0.1: ")
    assert told(read, taken) == [
        "r.yaml:6: stages.dpo: its run dpo.beta-0.1 would be called as a stage is; name that stage otherwise."
    ]
    assert told(read, sweeps=["stages.dpo.beta="]) == [
        "--set stages.dpo.beta=: stages.dpo.beta: expected a number above 0, found null."
    ]
    assert told(read, sweeps=["stages.dop.beta=1,2"]) == [
        "--set stages.dop.beta=1,2: dop is not a stage of this recipe; did you mean dpo?"
    ]
    for how in ({"sweeps": ["stages.dpo.beta=[1,2]"]}, {"overrides": ["stages.dpo.beta=[1,2]"]}):
        assert told(read, **how) == [
            "--set stages.dpo.beta=[1,2]: stages.dpo.beta: expected a number above 0, found a list. `align sweep` "
            "takes several values, without the brackets: --set stages.dpo.beta=1,2"
        ]
    assert told(read, overrides=["stages.dpo.beta=1,2"]) == [
        '--set stages.dpo.beta=1,2: stages.dpo.beta: expected a number above 0, found the text "1,2". `align sweep` '
        "takes several values."
    ]


def test_a_default_is_swept_where_any_value_beside_it_gives_it_effect(read: Read) -> None:
    """In either order of those values. Negative control: with none of them it is refused."""
    text = "base: b\nepochs: {sweep: [1, 2]}\nstages:\n  sft: {data: x.jsonl, max_steps: {sweep: %s}}\n"
    for steps in ("[5, null]", "[null, 5]"):
        assert len(read(text % steps).stages) == 4
    assert "epochs has no effect in any stage" in told(read, text % "[5, 6]")[0]
