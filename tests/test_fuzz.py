"""The short form of `python -m tests.benchmarks.fuzz`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from align import mix, pipeline
from align.cli import dispatch
from align.ground.errors import InputError
from align.store import Store
from tests.benchmarks import flags, fuzz


def test_only_our_errors_come_of_broken_manifests_and_recipes():
    counts, escaped = fuzz.run(lambda count: count < 800, seed=100)
    assert escaped == [] and sum(counts.values()) == 800
    assert counts["manifests accepted"] > 20 and counts["manifests refused"] > 300 and counts["recipes refused"] > 100


def test_what_escapes_is_reported(monkeypatch: pytest.MonkeyPatch):
    """Negative control: a parser that breaks on something is found, with the case that shows it."""

    def fragile(draw: random.Random) -> None:
        if draw.random() < 0.1:
            raise KeyError("base")

    monkeypatch.setattr(fuzz, "try_manifest", fragile)
    counts, (found,) = fuzz.run(lambda count: count < 100, seed=0)
    assert counts["manifests that broke it"] and found.startswith("manifest 0/") and "KeyError" in found


def test_every_setting_refuses_what_it_cannot_hold() -> None:
    """A few words for each of three stages' settings; `python -m tests.benchmarks.flags` tries all stages. What is
    refused names the setting; no number is without an end."""
    counts, wrong = flags.run(0, 3, ["ppo", "mix", "evaluate"])
    assert wrong == [] and counts["refused"] > 500 and counts["taken"] > 50
    assert flags.endless() == []


def test_a_setting_that_breaks_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a check of values together that takes one for what it is not."""
    monkeypatch.setattr(
        mix.Config, "conflicts", classmethod(lambda cls, given: [f.told for f in given.get("data", ())][:0])
    )
    counts, wrong = flags.run(0, 3, ["mix"])
    assert counts["broken"] == len(wrong) > 5 and "AttributeError" in wrong[0]


LAUGHS = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 10))


def test_a_home_that_is_none(tmp_path: Path):
    """`~no-such-user/x` names no home; it is a path as any other, and what is there is looked at before it is used."""
    path = tmp_path / "recipe.yaml"
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    path.write_text("stages: {sft: {base: ~no-such-user/base, data: x.jsonl}}\n")
    recipe = pipeline.load(path)
    with pytest.raises(InputError, match=r"there is no folder .*/~no-such-user/base"):
        pipeline.run(recipe, Store(tmp_path / "store"))
    with pytest.raises(InputError, match="there is no folder ~no-such-user/adapter"):
        dispatch(["import", "~no-such-user/adapter", "--base", "x", "--store", str(tmp_path / "store")])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x0: &x0 [lol]\n" + LAUGHS, "with its aliases written out it has more than 20,000 keys"),
        ("stages: &a {sft: *a}\n", r"not YAML|nested too deeply"),
        ("stages: " + "[" * 5000, "nested too deeply"),
        ("? [a, b]\n: 1\n", "a key is a list or a mapping"),
        ("stages: !!float x\n", "not YAML: could not convert string to float"),
        ("stages: !!python/object/apply:os.system [id]\n", "not YAML"),
        ("a: &a 1\nb: &a 2\n", "not YAML: .*found duplicate anchor"),
        ("# " + "x" * (1 << 20), "a recipe has at most"),
        ("null: 1\nstages: {null: {}, sft: {data: x}, reward: {parent: sfft, data: y}}\n", "expected|is not"),
    ],
)
def test_what_fuzzing_found(text: str, named: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=named):
        pipeline.load(path)
