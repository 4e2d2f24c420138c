"""Swept recipes at work: what is upstream is made once, what is done is skipped, all stay named, and a stopped sweep
goes on."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from statistics import fmean

import pytest

import align
from align import dpo
from align.cli import dispatch
from align.cli.recipes import _next
from align.data import formats
from align.evaluation.combine import combine
from align.ground.errors import AlignError, InputError, Stopped
from align.memory import rows
from align.pipeline import Unfinished, load
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
    assert "tiny/dpo.beta-0.5: run, nothing has its name yet" in told
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
    assert done.out.splitlines()[-1] == f"next: align compare 'tiny/dpo.*' --store {store.path}"
    dispatch(["run", str(pipeline.recipe), "--until", "sft", "--store", str(store.path)])
    assert capsys.readouterr().out.splitlines()[-1] == f"next: align show tiny/sft --store {store.path}"
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


@pytest.mark.parametrize(
    ("sweeps", "others", "advice"),
    [
        (["stages.dpo.beta=0.2,0.5"], [], "compare 'tiny/dpo.*'"),
        (["seed=4,5"], ["tiny/dpo"], "compare 'tiny/*/dpo'"),
        (["seed=4,5", "stages.dpo.beta=0.2,0.5"], ["tiny/dpo.beta-0.2"], "compare 'tiny/*/dpo.*'"),
        (["stages.dpo.beta=0.2,0.5"], ["tiny/dpo.beta-1"], "compare 'tiny/dpo.beta-0.*'"),
        (["stages.dpo.beta=0.2,0.5"], ["tiny/dpo.beta-0.3"], "compare 'tiny/dpo.beta-0.2' 'tiny/dpo.beta-0.5'"),
        ([f"seed={','.join(map(str, range(26)))}"], [], "compare 'tiny/*/dpo'"),
        ([f"seed={','.join(map(str, range(27)))}"], [], "ls 'tiny/*/dpo'"),
    ],
)
def test_what_a_sweep_ends_with_is_of_its_own_runs(
    pipeline: Pipeline, sweeps: list[str], others: list[str], advice: str
):
    """Whatever names of earlier sweeps are there, and no more of them than `compare` takes. Negative control: names
    that no pattern tells apart are told one by one."""
    recipe, store = load(pipeline.recipe, sweeps=sweeps), pipeline.store
    for name in store.refs():
        store.untag(name)
    made = [name for name, entry in recipe.stages.items() if entry.stage in ("sft", "dpo")]
    for name in [*(f"tiny/{run}" for run in made), *others]:
        store.tag(name, pipeline.made["dpo"])
    assert _next(recipe, made, store) == f"align {advice}"
    meant = {name for word in advice.split()[1:] for name in fnmatch.filter(store.refs(), word.strip("'"))}
    assert meant == {f"tiny/{run}" for run in made if recipe.stages[run].stage == "dpo"}


def test_what_does_not_build_on_a_failed_run_goes_on(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A value that diverges costs its own run and what needs it; all of it is told at the end, and what was made is
    that of a run alone. Negative control: a failure that is not one of training ends the sweep."""
    head, _, _ = pipeline.recipe.read_text().partition("  reward:")
    dpo_line = "  dpo: {parent: sft, data: pairs.jsonl, beta: 0.2, parent_adapter: stack, learning_rate: 0.01}\n"
    pipeline.recipe.write_text(f"{head}{dpo_line}  report: {{kind: evaluate, compare: [dpo], texts: sft.jsonl}}\n")
    where = ["--store", str(pipeline.store.path)]
    words = ["sweep", str(pipeline.recipe), *where, "--set", "stages.dpo.learning_rate=1e30,0.01,0.02"]
    with pytest.raises(Unfinished) as error:
        dispatch(words)
    told, (bad,) = str(error.value).splitlines(), error.value.failed
    assert told[0].startswith(f"tiny/{bad}: ") and "not finite" in told[0]
    assert told[1:] == [
        "Not begun: tiny/report.",
        "Of 6 runs 4 done, 1 failed, 1 not begun. Take the value out of the sweep, or do what is said of it; the same "
        "command then does the rest.",
    ]
    assert error.value.exit_code == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"next: align compare 'tiny/dpo.*' {' '.join(where)}"
    by_hand = align.run(pipeline.recipe, pipeline.store, overrides=["stages.dpo.learning_rate=0.02"], until="dpo")
    assert by_hand["dpo"] == error.value.made["dpo.learning_rate-0.02"]

    with pytest.raises(Unfinished):
        dispatch([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found[f"tiny/{bad}"] == {"failed": told[0]} and "digest" in found["tiny/sft"]
    assert found["tiny/report"] == {"left_out": f"it needs tiny/{bad}, which failed"}
    assert "metrics" in found["tiny/dpo.learning_rate-0.01"]

    def full(config: dpo.Config, store: Store):
        raise AlignError("the disk is full")

    monkeypatch.setattr(dpo, "run", full)
    with pytest.raises(Unfinished, match="Of 6 runs 2 done, 1 failed, 3 not begun") as error:
        align.run(load(pipeline.recipe, sweeps=["stages.dpo.learning_rate=0.01,0.03,0.04"]), pipeline.store)
    assert error.value.left_out["dpo.learning_rate-0.03"] == "not begun"
    with pytest.raises(AlignError, match=r"^the disk is full$"):  # without a sweep
        align.run(pipeline.recipe, pipeline.store)


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
    assert "tiny/seed-4/report, the last of 2 reports:" in told
    dispatch(["combine", "tiny/*/report", "--store", str(pipeline.store.path)])
    shown = capsys.readouterr().out
    assert "tiny/seed-3/report" in shown and "sft/letters" in shown
