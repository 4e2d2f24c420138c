"""Swept recipes at work: what is upstream is made once, what is done is skipped, all stay named, and a stopped sweep
goes on."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

import align
from align import dpo
from align.cli import dispatch
from align.data import formats
from align.evaluation.combine import combine
from align.ground.errors import InputError, Stopped
from align.memory import rows
from align.pipeline import load
from align.store import Store
from tests.conftest import Pipeline, write_world

BETAS = ["stages.dpo.beta=0.2,0.5"]
NAMES = ["dpo.beta-0.2", "dpo.beta-0.5"]


def names(store: Store) -> list[str]:
    return sorted(store.refs())


def test_a_sweep_makes_only_what_is_new(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """One value is the recipe's own, so that run is there already and gets its name; the other is stopped, goes on, and
    is trained as a run of its own would be. What follows is skipped, and gc removes nothing."""
    store, recipe = pipeline.store, load(pipeline.recipe, sweeps=BETAS)
    align.run(recipe, store, dry_run=True)
    told = capsys.readouterr().out
    assert told.splitlines()[0] == "tiny: 6 runs of 5 stages, 1 new, 5 done"
    assert "tiny/dpo.beta-0.5: run, it has not run before" in told
    alone = dpo.run

    def stopped(config: dpo.Config, store: Store):
        if config.beta == 0.5:
            raise Stopped("tiny/dpo.beta-0.5: stopped.")
        return alone(config, store)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="Stages that are done stay done"):
        patch.setattr(dpo, "run", stopped)
        align.run(recipe, store)
    assert "tiny/dpo.beta-0.2" in names(store) and "tiny/dpo.beta-0.5" not in names(store)
    made = align.run(recipe, store)
    assert made["dpo.beta-0.2"] == pipeline.made["dpo"] and made["sft"] == pipeline.made["sft"]
    by_hand = align.run(pipeline.recipe, store, overrides=["stages.dpo.beta=0.5"])["dpo"]
    assert made["dpo.beta-0.5"] == by_hand != made["dpo.beta-0.2"]
    assert {f"tiny/{name}" for name in NAMES} <= set(names(store))
    for name in ("tiny/dpo", "tiny/ppo"):  # what the sweep itself names is enough
        store.untag(name)
    kept = set(store.artifacts())
    store.collect(delete=True)
    assert {made[name] for name in NAMES} <= set(store.artifacts()) <= kept
    capsys.readouterr()
    dispatch(["sweep", str(pipeline.recipe), "--set", *BETAS, "--until", "dpo", "--store", str(store.path)])
    done = capsys.readouterr()
    assert all("done before, skipped" in line for line in done.err.splitlines())
    assert done.out.splitlines()[-1] == f"align compare 'tiny/dpo.*' --store {store.path}"
    dispatch(["compare", "tiny/dpo.*", "--store", str(store.path)])
    assert "beta                  0.2  0.5" in capsys.readouterr().out.splitlines()


def test_the_rehearsal_finds_what_a_variant_cannot_do(pipeline: Pipeline):
    """Before any run; the control is the value that fits."""
    with pytest.raises(InputError, match=r": stages\.ppo\.data: there is no file .*gone\.jsonl"):
        align.run(load(pipeline.recipe, sweeps=["stages.ppo.data=prompts.jsonl,gone.jsonl"]), pipeline.store)
    assert not [name for name in names(pipeline.store) if "data-" in name]
    done = align.run(load(pipeline.recipe, sweeps=["stages.ppo.data=prompts.jsonl"]), pipeline.store, dry_run=True)
    assert done == pipeline.made


def test_runs_that_read_alike_are_looked_at_once(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A file is read and its lengths taken once, and what is told is told once. Negative control: runs that read it
    otherwise read it themselves."""
    read: list[str] = []
    collect, rows_of = formats.collect, rows.rows_of
    monkeypatch.setattr(formats, "collect", lambda path, *more: read.append(Path(path).name) or collect(path, *more))
    monkeypatch.setattr(rows, "rows_of", lambda *given: read.append("lengths") or rows_of(*given))
    align.run(load(pipeline.recipe, sweeps=["stages.dpo.beta=0.3,0.5,0.7"]), pipeline.store, dry_run=True, until="dpo")
    told = capsys.readouterr().out
    assert read == ["pairs.jsonl", "lengths"]
    assert "\ntiny/dpo.beta-0.* (3 runs): as tiny/dpo.beta-0.3\n" in told
    assert "\ntiny/dpo.beta-0.* (3 runs)  " in told and "tiny/dpo.beta-0.7  " not in told
    read.clear()
    otherwise = ["stages.dpo.bad_rows=error,drop", "stages.dpo.beta=0.3"]
    align.run(load(pipeline.recipe, sweeps=otherwise), pipeline.store, dry_run=True, until="dpo")
    assert read.count("pairs.jsonl") == 2


def test_a_wrong_kind_is_told_once_for_all_runs(pipeline: Pipeline):
    """As the recipe calls stages, on its line; only earlier ones that fit and are not named already are proposed. The
    control is the stage that is proposed."""
    sweeps = ["seed=3,4", "stages.dpo.beta=0.2,0.5", "stages.ppo.kl_coef=0.1,0.2"]
    text = pipeline.recipe.read_text()
    lines = [line.strip() for line in text.splitlines()]
    with pytest.raises(InputError) as error:
        load(pipeline.recipe, ["stages.dpo.parent=reward"], sweeps)
    told = "reward makes a reward artifact, but dpo needs adapter or model there; name pretrain or sft."
    assert str(error.value) == f"--set stages.dpo.parent=reward: stages.dpo.parent: {told}"
    more = "  report: {kind: evaluate, compare: [sft, dpo, reward], texts: sft.jsonl}\n"
    pipeline.recipe.write_text(text + more)
    with pytest.raises(InputError) as error:
        load(pipeline.recipe, sweeps=sweeps)
    told = "reward makes a reward artifact, but evaluate needs adapter there; name ppo."
    assert str(error.value) == f"{pipeline.recipe}:{len(lines) + 1}: stages.report.compare: {told}"
    pipeline.recipe.write_text(text + more.replace("reward", "ppo"))
    load(pipeline.recipe, sweeps=sweeps)


def test_from_and_until_take_all_runs_of_a_stage(pipeline: Pipeline):
    recipe = load(pipeline.recipe, sweeps=["stages.dpo.beta=0.2,0.5", "stages.ppo.seed=3,4"])
    made = align.run(recipe, pipeline.store, dry_run=True, from_="dpo", until="ppo.seed-3")
    assert {*made} - {"pretrain", "sft", "reward"} == {"dpo.beta-0.2", "ppo.seed-3"}
    with pytest.raises(InputError, match=r"--until sft comes before --from dpo; the order is pretrain, sft, reward, "):
        align.run(recipe, pipeline.store, from_="dpo", until="sft")
    with pytest.raises(InputError, match=r"--until dpo\.beta-0\.6: no such stage; did you mean dpo\.beta-0\.5\?"):
        align.run(recipe, pipeline.store, until="dpo.beta-0.6")


def test_a_default_without_effect_in_a_stage_leaves_it_shared(tmp_path: Path):
    """Full-weight pretraining has no adapter, so it is one run; the control is a setting that it has."""
    recipe = write_world(tmp_path)
    ranks, seeds = load(recipe, sweeps=["adapter.rank=2,4"]), load(recipe, sweeps=["seed=1,2"])
    assert list(ranks.stages)[:3] == ["pretrain", "rank-2/sft", "rank-4/sft"]
    assert list(seeds.stages)[:2] == ["seed-1/pretrain", "seed-2/pretrain"]


def test_a_sweep_of_nothing_is_refused(tmp_path: Path):
    recipe, store = write_world(tmp_path), ["--store", str(tmp_path / "store")]
    with pytest.raises(InputError, match=r"nothing is swept\. Give several values"):
        dispatch(["sweep", str(recipe), "--set", "stages.dpo.beta=0.3", *store])
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_reports_of_seeds_are_combined(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]):
    """Pretraining, which has a seed of its own, is shared; each seed has its report, with names that are alike, and
    their means are by hand."""
    judge = "def score(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"
    (pipeline.recipe.parent / "judge.py").write_text(judge)
    text = pipeline.recipe.read_text().replace("seed: 3\n", "seed: {sweep: [3, 4]}\n")
    text = text.partition("  reward:")[0].replace("  pretrain:\n", "  pretrain:\n    seed: 3\n")
    report = "{kind: evaluate, compare: [sft], data: prompts.jsonl, judges: {letters: judge.py:score}, "
    pipeline.recipe.write_text(f"{text}  report: {report} include_base: false, max_new_tokens: 4}}\n")
    made = align.run(pipeline.recipe, pipeline.store)
    assert list(made) == ["pretrain", "seed-3/sft", "seed-4/sft", "seed-3/report", "seed-4/report"]
    assert made["pretrain"] == pipeline.made["pretrain"] and made["seed-3/sft"] == pipeline.made["sft"]
    assert made["seed-4/sft"] != made["seed-3/sft"]
    found, others = combine(pipeline.store, ["tiny/seed-3/report", "tiny/seed-4/report"])
    values = [made[f"seed-{seed}/report"].metrics["sft/letters"] for seed in (3, 4)]
    assert found["sft/letters"].mean == pytest.approx(fmean(values)) and others == []
    capsys.readouterr()
    dispatch(["run", str(pipeline.recipe), "--store", str(pipeline.store.path)])
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"align combine 'tiny/*/report' --store {pipeline.store.path}"
    assert "tiny/seed-4/report, the last of 2 reports; the command at the end is for all:" in told
    dispatch(["combine", "tiny/*/report", "--store", str(pipeline.store.path)])
    shown = capsys.readouterr().out
    assert "tiny/seed-3/report" in shown and "sft/letters" in shown
