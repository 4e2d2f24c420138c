"""Recipes: stages run in order, nothing twice, a change reruns what depends on it, and mistakes are found before
anything runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import align
from align import cli
from align.ground.cost import peak_memory, reset_peak_memory
from align.ground.errors import InputError, Stopped
from align.pipeline import load
from align.store import Store
from align.training.trainer import StageTrainer
from tests.conftest import ROOT, Pipeline, run_align, write_world

STAGES = ["pretrain", "sft", "reward", "dpo", "ppo"]


def contents(store: Store) -> dict[str, bytes]:
    return {str(path.relative_to(store.path)): path.read_bytes() for path in store.path.rglob("*") if path.is_file()}


def append(recipe: Path, *lines: str) -> None:
    recipe.write_text(recipe.read_text() + "".join(f"  {line}\n" for line in lines))


def test_stages_hand_on_what_they_made(trained: Pipeline):
    """Every ref points at what its stage made, and parents are the digests of the recipe's own stages."""
    made = trained.made
    assert list(made) == STAGES
    assert trained.store.refs() == {f"tiny/{name}": artifact.digest for name, artifact in made.items()}
    assert [a.kind for a in made.values()] == ["model", "adapter", "reward", "adapter", "adapter"]
    assert made["sft"].parents == {"parent": made["pretrain"].digest}
    assert made["ppo"].parents == {"parent": made["sft"].digest, "reward": made["reward"].digest}
    assert made["dpo"].base and made["dpo"].base["model"] == f"artifact:{made['pretrain'].digest}"
    # stacked on sft's
    assert sorted({path.split("/")[1] for path in made["dpo"].files if path.startswith("adapters/")}) == ["0", "1"]


def test_second_run_skips_everything_without_torch(pipeline: Pipeline):
    """All stages are skipped, the store keeps every byte, no tensor library is loaded, and it takes at most 2 s of
    CPU."""
    program = f"""
import json, resource, sys
from align.cli import dispatch
dispatch(["run", {str(pipeline.recipe)!r}, "--store", {str(pipeline.store.path)!r}])
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = {{"torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes"}}
print(json.dumps({{"heavy": sorted(heavy & set(sys.modules)), "seconds": used.ru_utime + used.ru_stime}}))
"""
    before = contents(pipeline.store)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    *table, last = done.stdout.splitlines()
    found = json.loads(last)
    assert found["heavy"] == [] and found["seconds"] <= 2.0
    assert done.stderr.splitlines() == [
        f"tiny/{name}: done before, skipped -> {pipeline.made[name].short}" for name in STAGES
    ]
    assert [line.split()[:2] for line in table[: len(STAGES)]] == [
        [f"tiny/{name}", pipeline.made[name].short] for name in STAGES
    ]
    assert contents(pipeline.store) == before


def test_changed_setting_reruns_the_stage_and_its_children(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]):
    """A new reward model gives a new PPO policy; pretrain, sft and dpo stay. A runtime setting reruns nothing."""
    change = ["stages.reward.head_learning_rate=0.05"]
    align.run(pipeline.recipe, pipeline.store, overrides=change, dry_run=True)
    assert capsys.readouterr().out.partition("\n\n")[0].splitlines() == [  # what comes then is the memory plan
        f"tiny/pretrain: skip, {pipeline.made['pretrain'].short} is there",
        f"tiny/sft: skip, {pipeline.made['sft'].short} is there",
        "tiny/reward: run, head_learning_rate 0.001 -> 0.05",
        f"tiny/dpo: skip, {pipeline.made['dpo'].short} is there",
        "tiny/ppo: run, its reward is made anew by tiny/reward",
    ]
    again = align.run(pipeline.recipe, pipeline.store, overrides=change)
    assert [name for name in STAGES if again[name] != pipeline.made[name]] == ["reward", "ppo"]
    assert pipeline.store.refs()["tiny/reward"] == again["reward"].digest
    # Back to the recipe as it was: everything is there already, although the names point elsewhere now.
    assert (
        align.run(pipeline.recipe, pipeline.store, overrides=["stages.ppo.tokens_per_microbatch=512"]) == pipeline.made
    )


def test_a_dry_run_for_programs_says_what_becomes_of_each_stage(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`align run --dry-run --json`: one JSON value, whose memory is that of the table of bytes, and nothing else."""
    argv = ["align", "run", str(pipeline.recipe), "--store", str(pipeline.store.path), "--dry-run", "--json"]
    monkeypatch.setattr(sys, "argv", [*argv, "--from", "sft", "--set", "stages.dpo.beta=0.3"])
    cli.main()
    found = json.loads(capsys.readouterr().out)
    taken, skipped, run = (found["stages"][f"tiny/{name}"] for name in ("pretrain", "sft", "dpo"))
    assert taken == {"verdict": "taken", "digest": pipeline.made["pretrain"].digest}
    assert skipped == {"verdict": "skip", "digest": pipeline.made["sft"].digest}
    assert run["verdict"] == "run" and run["why"] == "beta 0.2 -> 0.3"
    assert run["memory"]["peak"] == max(sum(parts.values()) for parts in run["memory"]["phases"].values())
    assert found["device"] and found["budget"] is None


def test_a_stop_in_the_last_step_holds_for_the_next_stage(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage is done and the run ends before the next; the control: where nothing comes next all is done."""
    step = StageTrainer.training_step

    def stopped(self: StageTrainer, *args: Any) -> Any:
        if self.state.global_step == self.source.steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(StageTrainer, "training_step", stopped)
    ahead = ["stages.sft.seed=9"]
    with pytest.raises(Stopped, match=r"stopped before tiny/reward; the same command goes on from there\."):
        align.run(pipeline.recipe, pipeline.store, overrides=ahead)
    made = pipeline.store.resolve("tiny/sft")
    assert made.digest != pipeline.made["sft"].digest
    assert align.run(pipeline.recipe, pipeline.store, overrides=ahead, until="sft")["sft"] == made
    assert "sft" in align.run(pipeline.recipe, pipeline.store, overrides=["stages.sft.seed=10"], until="sft")


def test_changed_data_is_seen(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]):
    data = pipeline.recipe.parent / "prompts.jsonl"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[1:]))
    align.run(pipeline.recipe, pipeline.store, dry_run=True, from_="ppo")
    assert (
        capsys.readouterr()
        .out.partition("\n\n")[0]
        .splitlines()[-1]
        .startswith("tiny/ppo: run, the content of data changed (")
    )


def test_dry_run_writes_nothing(tmp_path: Path, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]):
    fresh = Store(tmp_path / "fresh")
    assert align.run(pipeline.recipe, fresh, dry_run=True) == {}
    assert not fresh.path.exists()
    assert capsys.readouterr().out.splitlines()[:2] == [
        "tiny/pretrain: run, nothing has its name yet",
        "tiny/sft: run, nothing has its name yet",
    ]
    shutil.rmtree(pipeline.store.path / "cache")  # nor is a base laid out to be looked at
    before = contents(pipeline.store)
    assert align.run(pipeline.recipe, pipeline.store, dry_run=True, overrides=["stages.dpo.beta=0.3"]).keys() == set(
        STAGES
    ) - {"dpo"}
    assert contents(pipeline.store) == before


def test_names_moved_by_others_change_nothing(pipeline: Pipeline):
    """Stages get what this recipe makes, not what its names happen to point at."""
    pipeline.store.tag("tiny/sft", pipeline.made["dpo"])
    assert align.run(pipeline.recipe, pipeline.store, dry_run=True) == pipeline.made
    assert align.run(pipeline.recipe, pipeline.store, until="reward")["reward"] == pipeline.made["reward"]
    assert pipeline.store.refs()["tiny/sft"] == pipeline.made["sft"].digest


def test_from_and_until(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]):
    """`until` ends; `from` begins on what is there, even where the recipe or its data has changed since, which is
    said. Negative control: of a stage whose settings are the same nothing is."""
    recipe, store, made = pipeline.recipe, pipeline.store, pipeline.made
    assert list(align.run(recipe, store, until="sft")) == ["pretrain", "sft"]
    (recipe.parent / "texts.jsonl").unlink()
    with pytest.raises(InputError, match=r"data: there is no file .*texts\.jsonl"):
        align.run(recipe, store)
    changed = ["stages.dpo.beta=0.4", "stages.sft.learning_rate=0.02"]
    with pytest.raises(InputError) as refused:
        align.run(recipe, store, from_="dpo", until="dpo", overrides=changed)
    assert str(refused.value) == (
        "--set stages.sft.learning_rate=0.02: it has no effect on what is asked for (dpo), only on sft. Leave it out, "
        "or change --from or --until."
    )
    with pytest.raises(InputError, match=r"^--set learning_rate=0\.5: .* \(dpo\), only on pretrain, reward\."):
        align.run(recipe, store, from_="dpo", until="dpo", overrides=["learning_rate=0.5"])
    recipe.write_text(recipe.read_text().replace("data: sft.jsonl, learning_rate: 0.01", "data: sft.jsonl"))
    capsys.readouterr()
    again = align.run(recipe, store, from_="dpo", until="dpo", overrides=changed[:1])
    said = capsys.readouterr().err
    assert f"tiny/sft: {made['sft'].short} is taken as it is, though it would be made anew: learning_rate 0.01" in said
    assert "tiny/reward: " not in said
    assert (
        again["sft"] == made["sft"]
        and again["dpo"] != made["dpo"]
        and again["dpo"].parents == {"parent": made["sft"].digest}
    )


def test_from_needs_what_comes_before(tmp_path: Path):
    recipe, store = write_world(tmp_path), Store(tmp_path / "store")
    with pytest.raises(InputError) as error:
        align.run(recipe, store, from_="ppo")
    assert (
        str(error.value)
        == f"--from ppo: ppo needs sft, but there is no tiny/sft in {store.path}. Run it first: --from sft."
    )
    assert not store.path.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"from_": "rewad"}, "--from rewad: no such stage; did you mean reward?"),
        ({"until": "xyz"}, "--until xyz: no such stage; the recipe has pretrain, sft, reward, dpo, ppo."),
        (
            {"from_": "dpo", "until": "sft"},
            "--until sft comes before --from dpo; the order is pretrain, sft, reward, dpo, ppo.",
        ),
        (
            {"overrides": ["stages.ppo.reward=dpo"]},
            "--set stages.ppo.reward=dpo: stages.ppo.reward: dpo makes an adapter artifact, but ppo needs reward "
            "there; name reward.",
        ),
        (
            {"overrides": ["stages.dpo.data=reward"]},
            "--set stages.dpo.data=reward: stages.dpo.data: reward makes a reward artifact, but dpo needs data there; "
            "add a stage that makes one.",
        ),
        (
            {"overrides": ["stages.ppo.data=gone.jsonl"]},
            "--set stages.ppo.data=gone.jsonl: stages.ppo.data: there is no file {folder}/gone.jsonl, and no data "
            "artifact of that name in {store}.",
        ),
        (
            {"overrides": ["stages.ppo.data=rewrad"]},
            "--set stages.ppo.data=rewrad: stages.ppo.data: there is no file rewrad, and no data artifact of that name "
            "in {store}. Did you mean reward, an earlier stage?",
        ),
        (
            {"overrides": ["stages.sft.store=one", "stages.dpo.store=one"], "store": None},
            "{recipe}: all stages of a recipe share one store; found default, one. Set `store` once, beside stages.",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path: Path, change: dict, message: str):
    recipe, store = write_world(tmp_path), Store(tmp_path / "store")
    with pytest.raises(InputError) as error:
        align.run(recipe, **({"store": store} | change))
    assert str(error.value) == message.format(recipe=recipe, folder=tmp_path, store=store.path)
    assert not store.path.exists()


def test_all_that_is_missing_is_told_in_one_go_with_its_line(tmp_path: Path):
    """Of a swept stage once. Negative control: the same recipe without the mistakes is looked at to its end."""
    recipe, store = write_world(tmp_path), Store(tmp_path / "store")
    right = recipe.read_text()
    given = "sft: {parent: pretrain, data: sft.jsonl"
    assert given in right
    recipe.write_text(right.replace(given, "sft: {parent: pretrain, report_to: tensorbord, data: gone.jsonl"))
    swept = "stages.dpo.beta=0.1,0.2"
    with pytest.raises(InputError) as error:
        align.run(load(recipe, ["stages.dpo.data=away.jsonl"], [swept]), store, dry_run=True)
    line = right[: right.index(given)].count("\n") + 1
    missing = f"and no data artifact of that name in {store.path}."
    assert str(error.value).splitlines() == [
        f"{recipe}:{line}: stages.sft.data: there is no file {tmp_path}/gone.jsonl, {missing}",
        f"--set stages.dpo.data=away.jsonl: stages.dpo.data: there is no file {tmp_path}/away.jsonl, {missing}",
    ]
    recipe.write_text(right.replace(given, "sft: {parent: pretrain, report_to: tensorbord, data: sft.jsonl"))
    with pytest.raises(InputError, match=f"{line}: stages.sft.report_to: tensorbord is no tracker .*mean tensorboard"):
        align.run(recipe, store, dry_run=True)
    misread = right.replace(given, given.replace("sft.jsonl", "gone.jsonl")).replace(
        "reward: {parent: sft", "reward: {parent: sfft"
    )
    recipe.write_text(misread)
    with pytest.raises(InputError) as error:
        load(recipe)
    parent, file = str(error.value).splitlines()
    assert parent.endswith("stages.reward.parent: sfft is not an earlier stage of this recipe; did you mean sft?")
    assert file == f"{recipe}:{line}: stages.sft.data: there is no file {tmp_path}/gone.jsonl."
    recipe.write_text(right)
    align.run(load(recipe, sweeps=[swept]), store, dry_run=True)


def test_a_judge_that_is_missing_is_told_with_the_data_that_are(tmp_path: Path):
    """Of a stage whose inputs are still to be made: by its setting and line, in the pass that finds the data, before a
    library is loaded. Negative control: with the file the recipe is looked at to its end."""
    recipe, store = write_world(tmp_path), Store(tmp_path / "store")
    judge = "def score(prompts, completions, **columns):\n    return [len(c) for c in completions]\n"
    (tmp_path / "judge.py").write_text(judge)
    judges = "judges: {long: judges.py:score, short: judge.py:score}"
    append(recipe, f"report: {{kind: evaluate, compare: [sft], data: prompts.jsonl, max_new_tokens: 8, {judges}}}")
    text = recipe.read_text()
    line = text[: text.index("  report:")].count("\n") + 1
    gone = text.replace("sft: {parent: pretrain, data: sft.jsonl", "sft: {parent: pretrain, data: gone.jsonl")
    assert gone != text
    recipe.write_text(gone)
    with pytest.raises(InputError) as error:
        align.run(recipe, store, dry_run=True)
    data, missing = str(error.value).splitlines()
    assert "stages.sft.data: there is no file" in data
    found = f"there is no file {tmp_path}/judges.py. Did you mean {tmp_path}/judge.py?"
    assert missing == f"{recipe}:{line}: stages.report.judges.long: {found}"
    recipe.write_text(text.replace("judges.py", "judge.py"))
    align.run(recipe, store, dry_run=True)


def test_data_of_a_stage_then_merge_and_report(pipeline: Pipeline):
    """Sampled pairs feed DPO; the command ends with the report's table and its place; merged weights are exported
    once."""
    judge = "def score(prompts, completions, **columns):\n    return [len(c) for c in completions]\n"
    (pipeline.recipe.parent / "judge.py").write_text(judge)
    append(
        pipeline.recipe,
        "pairs: {parent: sft, data: prompts.jsonl, judge: judge.py:score, max_new_tokens: 8}",
        "dpo2: {kind: dpo, parent: sft, data: pairs, eval_fraction: 0.3}",
        "export: {kind: merge, parent: dpo2, out: exported, max_kl: 1.0}",
        "report: {kind: evaluate, compare: [sft, dpo, dpo2], data: prompts.jsonl, judges: {letters: judge.py:score}, "
        "max_new_tokens: 8}",
    )
    flags = ["--store", pipeline.store.path]
    done = run_align("run", pipeline.recipe, *flags)
    made = {name: pipeline.store.resolve(f"tiny/{name}") for name in ("pairs", "dpo2", "export", "report")}
    assert made["dpo2"].data["data"] == made["pairs"].files["data.jsonl"]["sha256"]
    assert made["export"].kind == "model" and (pipeline.recipe.parent / "exported/model.safetensors").is_file()
    assert {"sft/letters", "dpo/letters", "dpo2/letters"} <= set(made["report"].metrics)
    assert pipeline.store.read(made["report"], "table.txt").decode().rstrip() in done.stdout
    page = Path(done.stdout.splitlines()[-1].removeprefix("report: "))
    assert page.read_bytes() == pipeline.store.read(made["report"], "report.html")
    assert run_align("run", pipeline.recipe, *flags).stdout == done.stdout
    assert "tiny/report:" in done.stdout.splitlines() and " reports" not in done.stdout


def test_peak_memory_is_the_stages_own():
    """What was held and freed before a stage does not count as its memory (Linux; 300 MB against a spare 100)."""
    if sys.platform != "linux":
        pytest.skip("only Linux measures resident memory from a point on")
    held = b"x" * (300 * 2**20)
    reset_peak_memory()
    before = peak_memory()
    del held
    reset_peak_memory()
    assert peak_memory() < before - 200 * 2**20


def test_recipes_are_checked_whole(tmp_path: Path):
    """Two wrong hand-overs are told in one message."""
    recipe = write_world(tmp_path)
    with pytest.raises(InputError, match=r"stages\.dpo\.parent: reward makes .*\n.*stages\.ppo\.reward: sft makes"):
        load(recipe, ["stages.ppo.reward=sft", "stages.dpo.parent=reward"])


def test_a_default_that_parents_in_the_store_leave_without_effect(pipeline: Pipeline):
    """The shape of an adapter, where each stage goes on with one that is there. Negative control: one of them stacks
    another on it."""
    recipe, stages = pipeline.recipe.parent / "later.yaml", "{parent: tiny/sft, data: %s, max_steps: 1%s}"
    text = "threads: 1\nadapter: {rank: 3}\nstages:\n"
    sft, dpo = stages % ("sft.jsonl", ""), stages % ("pairs.jsonl", "%s")
    recipe.write_text(text + f"  sft: {sft}\n  dpo: {dpo % ''}\n")
    with pytest.raises(InputError, match=r"^\S*later.yaml:2: adapter.rank has no effect in any stage: the parent's"):
        align.run(recipe, pipeline.store, dry_run=True)
    with pytest.raises(InputError, match=r"adapter\.rank has no effect in any stage"):
        align.run(load(recipe, sweeps=["adapter.rank=2,3"]), pipeline.store, dry_run=True)
    recipe.write_text(text + f"  sft: {sft}\n  dpo: {dpo % ', parent_adapter: stack'}\n")
    assert align.run(recipe, pipeline.store, dry_run=True) == {}


def test_a_stage_may_name_what_flags_made(pipeline: Pipeline):
    """By its name in the store, which has no recipe's before it. Negative control: a name that is not there."""
    pipeline.store.tag("mine", pipeline.made["sft"])
    recipe = pipeline.recipe.parent / "later.yaml"
    text = "threads: 1\nprecision: fp32\nstages:\n  dpo: {parent: %s, data: pairs.jsonl, max_steps: 1}\n"
    recipe.write_text(text % "mine")
    made = align.run(recipe, pipeline.store)["dpo"]
    assert made.parents == {"parent": pipeline.made["sft"].digest}
    recipe.write_text(text % "mime")
    with pytest.raises(InputError) as error:
        align.run(recipe, pipeline.store, dry_run=True)
    assert str(error.value).startswith(f"{recipe}:4: stages.dpo.parent: 'mime' is no name and no digest in ")
    assert str(error.value).endswith(
        "; did you mean mine? Nor is it a stage before this one; there are no earlier ones."
    )


def test_a_pulled_store_learns_from_the_recipe_where_the_base_lies(tmp_path: Path):
    """All that was pulled is found done, by a rehearsal and by a run, whole or of the later stage alone. Negative
    control: a recipe that names no base, in a store that was told nothing."""
    recipe, store = write_world(tmp_path), Store(tmp_path / "store")
    short = "max_length: 96, max_steps: 1, batch_size: 2"
    recipe.write_text(
        f"name: t\nbase: {ROOT / 'data/tiny-base'}\nprecision: fp32\nthreads: 1\nstages:\n"
        f"  sft: {{data: sft.jsonl, adapter: {{rank: 2}}, {short}}}\n"
        f"  dpo: {{parent: sft, data: pairs.jsonl, {short}}}\n"
    )
    made = align.run(recipe, store)
    store.push(tmp_path / "far")
    others = [Store(tmp_path / name) for name in ("one", "two", "three")]
    for other in others:
        other.pull(tmp_path / "far")
    alone = tmp_path / "alone.yaml"
    alone.write_text(f"precision: fp32\nthreads: 1\nstages:\n  dpo: {{parent: t/sft, data: pairs.jsonl, {short}}}\n")
    with pytest.raises(InputError, match="is not where it was"):
        align.run(alone, others[0])
    assert align.run(recipe, others[0], from_="dpo", dry_run=True) == made
    assert align.run(recipe, others[0], from_="dpo") == made
    assert align.run(recipe, others[1], dry_run=True) == made
    assert align.run(recipe, others[2]) == made
    assert others[1].place(made["dpo"].base["digest"]) is None, "a rehearsal writes nothing"
    assert align.run(recipe, others[2], from_="dpo") == {"sft": made["sft"], "dpo": made["dpo"]}
