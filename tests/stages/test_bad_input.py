"""Bad input: one clear message and exit code 2, before a model is loaded, and nothing is committed."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import align
from align import generate, judges, merge, models
from align.data.records import Message, Prompt
from align.ground.errors import AlignError, InputError
from align.pipeline import load
from align.recipe import Adapter
from align.stage import layout, question, reading
from align.stage.question import prepare
from align.stage.workbench import Workbench
from align.store import Store, live_runs
from tests.conftest import ROOT, Pipeline, write_rows
from tests.stages.helpers import committed, run, settings

ROW = {"prompt": "Which colour?", "chosen": "Red.", "rejected": "Who knows?"}


@pytest.fixture(scope="module")
def place(trained: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A copy of the pipeline that these tests leave as it is."""
    folder = tmp_path_factory.mktemp("bad") / "pipeline"
    shutil.copytree(trained.recipe.parent, folder)
    return Pipeline(folder / "tiny.yaml", Store(folder / "store"), trained.made)


@pytest.fixture(autouse=True)
def nothing_heavy(place: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No weights are loaded, and what the store keeps stays as it is."""
    before = committed(place.store)
    monkeypatch.setattr(models.base, "load_base", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    yield
    assert committed(place.store) == before


def refused(place: Pipeline, stage: str, **changes: Any) -> str:
    with pytest.raises(InputError) as error:
        run(place, stage, **changes)
    assert error.value.exit_code == 2
    assert live_runs(place.store) == [], "what was refused is no run that was stopped"
    return str(error.value)


def test_files_are_looked_for_before_the_base_is_read(place: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a large base takes seconds. Negative control: with its files there, it is read."""
    monkeypatch.setattr(question, "base_of", lambda *_: pytest.fail("the base was read"))
    assert "data: there is no file " in refused(
        place, "sft", parent=None, base=align.recipe.Base(model="b"), data="gone.jsonl"
    )
    with pytest.raises(pytest.fail.Exception, match="the base was read"):
        run(place, "sft")


# ---- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("beta: 0.2", "betta: 0.2", "{recipe}:18: stages.dpo.betta is not a setting of dpo; did you mean beta?"),
        ("beta: 0.2", "beta: much", '{recipe}:18: stages.dpo.beta: expected a number above 0, found the text "much".'),
        (
            "data: sft.jsonl",
            "data: gone.jsonl",
            "{recipe}:16: stages.sft.data: there is no file {folder}/gone.jsonl, and no data artifact of that name "
            "in {store}.",
        ),
        ("seed: 3", "seeed: 3", "{recipe}:2: seeed is not a setting of any stage here; did you mean seed?"),
    ],
)
def test_recipes(old: str, new: str, message: str, place: Pipeline) -> None:
    recipe = place.recipe.with_name("changed.yaml")
    recipe.write_text(place.recipe.read_text().replace(old, new))
    with pytest.raises(InputError) as error:
        align.run(recipe, place.store)
    assert error.value.exit_code == 2
    assert str(error.value) == message.format(recipe=recipe, folder=place.recipe.parent, store=place.store.path)


def test_dropout_where_equal_models_must_agree(place: Pipeline) -> None:
    with pytest.raises(InputError) as error:
        load(place.recipe, ["adapter.dropout=0.1"])
    words = (
        "adapter.dropout is 0.1, which only sft and pretrain may have: here equal models would differ by chance. "
        "Set it to 0."
    )
    assert [line.split(": ", 1)[1] for line in str(error.value).splitlines()] == [
        f"stages.{s}: {words}" for s in ("reward", "dpo", "ppo")
    ]


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "text", "message"),
    [
        (
            "sft",
            '{"prompt": "a", "completion": "b"}\n{"prompt": \n',
            "{data}:2: not JSON: Expecting value (column 11). Expected one object on the line.",
        ),
        (
            "sft",
            '{"prompt": "a"}\n',
            '{data}:1: "completion" is missing. A conversation needs prompt and completion (or messages); found '
            "prompt.",
        ),
        ("reward", json.dumps({**ROW, "chosen": " "}), '{data}:1: "chosen" is empty. Remove the row, or give it text.'),
        ("dpo", json.dumps({**ROW, "rejected": ""}), '{data}:1: "rejected" is empty. Remove the row, or give it text.'),
        ("ppo", json.dumps({"answer": "Red."}), '{data}:1: "prompt" is missing. '),
        ("sft", "", "{data}: the data set is empty. Expected at least one conversation."),
        ("pretrain", "", "{data}: the data set is empty. Expected at least one document."),
        (
            "dpo",
            json.dumps({**ROW, "rejected": "Red."}),
            "{data}: every row was left out (1 pairs whose chosen equals rejected). Expected at least one preference "
            "to work with.",
        ),
        ("sft", json.dumps({"prompt": "a " * 90, "completion": "b"}), "{data}:1: "),
    ],
)
def test_rows(stage: str, text: str, message: str, place: Pipeline, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(text)
    assert refused(place, stage, data=data).startswith(message.format(data=data))


def test_missing_file(place: Pipeline, tmp_path: Path) -> None:
    message = f"data: there is no file {tmp_path}/gone.jsonl, and no data artifact of that name in {place.store.path}."
    assert refused(place, "sft", data=tmp_path / "gone.jsonl") == message


def test_prompts_longer_than_the_context(place: Pipeline, tmp_path: Path) -> None:
    """Before the model is loaded, in every stage that samples."""
    data = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Hi"}, {"prompt": "red " * 200}])
    judge = tmp_path / "judge.py"
    judge.write_text("def score(prompts, completions, **columns):\n    return [0.0] * len(prompts)\n")
    from align import evaluate, generate, pairs

    sampling: dict[str, Any] = {"data": data, "max_new_tokens": 8, "precision": "fp32"}
    ours = refused(place, "ppo", data=data)  # which counts prompt and answer against max_length, 96 here
    assert (
        ours.startswith(f"{data}:2: the prompt has ")
        and "8 more are to be sampled, but max_length is 96. Shorten or remove" in ours
    )
    assert "but the model's context is 128. Shorten" in refused(place, "ppo", data=data, max_length=500)
    messages = []
    for stage, config in (
        (generate, generate.Config(parent="tiny/sft", **sampling)),
        (pairs, pairs.Config(parent="tiny/sft", judge=f"{judge}:score", **sampling)),
        (evaluate, evaluate.Config(compare=["tiny/sft"], **sampling)),
    ):
        with pytest.raises(InputError) as error:
            stage.run(config, place.store)  # type: ignore[attr-defined]
        messages.append(str(error.value))
    assert len(set(messages)) == 1
    assert messages[0].startswith(f"{data}:2: the prompt has ")
    assert messages[0].endswith(
        " tokens and 8 more are to be sampled, but the model's context is 128. Shorten or remove the row, or set "
        "max_new_tokens lower."
    )


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo", "reward"])
def test_a_length_beyond_the_context(
    stage: str, place: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """128 tokens is what holds, so that is what is recorded and asked: the same as asking for it. Negative control: 127
    is another run."""
    module = importlib.import_module(f"align.{stage}")
    jobs = {n: prepare(module.STAGE, settings(place, stage, max_length=n), place.store) for n in (127, 128, 4096)}
    assert {n: job.settings["max_length"] for n, job in jobs.items()} == {127: 127, 128: 128, 4096: 128}
    assert jobs[4096].key == jobs[128].key != jobs[127].key
    for n, job in jobs.items():
        assert Workbench(job).load_renderer().max_length == min(n, 128)
        said = (
            f"a row has at most 128 tokens, the context of artifact {place.made['pretrain'].digest[:12]} "
            f"(max_length is {n:,})"
        )
        assert (said in capsys.readouterr().err) == (n == 4096)


def test_a_file_that_exists_is_not_overwritten(
    place: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own data neither, nor what a link points at, in a dry run or a run; a device is none. A full one is one
    sentence. Negative control: a new name is written."""
    data = shutil.copy(place.recipe.with_name("prompts.jsonl"), tmp_path / "prompts.jsonl")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    before = data.read_bytes()
    row = {"completion": "Red.", "ended": True}
    monkeypatch.setattr(generate, "run", lambda config, store: [row])
    argv = ["align generate", "tiny/sft", "--store", str(place.store.path), "--data", str(data), "--out"]

    def plan(out: str) -> None:
        config = generate.Config(parent="tiny/sft", data=str(data), out=out)
        generate.ready(Workbench(prepare(generate.STAGE, config, place.store)), {})

    for out in (data, tmp_path / "link"):
        for write in (generate.write_out, lambda out, _: plan(out)):
            with pytest.raises(InputError, match=rf"^out: {out} is there already.* nothing is overwritten"):
                write(str(out), "")
    plan("/dev/null")
    for out, code, said in (
        (tmp_path / "new.jsonl", None, "1 answers, 100.0% ended"),
        ("/dev/full", 1, "out: /dev/full cannot be written (No space left on device)."),
    ):
        monkeypatch.setattr(sys, "argv", [*argv, str(out)])
        with pytest.raises(SystemExit) if code else nullcontext() as done:
            generate.main()
        assert said in capsys.readouterr().err and (done is None or done.value.code == code)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", [*argv, str(tmp_path / "both.jsonl")])
    with pytest.raises(SystemExit):
        generate.main()
    assert "generate works in one process" in capsys.readouterr().err and not (tmp_path / "both.jsonl").exists()
    assert json.loads((tmp_path / "new.jsonl").read_text()) == row
    assert data.read_bytes() == before and not (tmp_path / "gone").exists()


def test_places_that_cannot_be_written(place: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file needs its folder, a folder one above that is none but a folder; found out before anything is read."""
    monkeypatch.setattr(Workbench, "load_renderer", lambda *args: pytest.fail("a tokenizer was loaded"))
    (tmp_path / "file").write_text("")
    prompts = str(place.recipe.with_name("prompts.jsonl"))
    for out, message in (
        ("no/such/rows.jsonl", "there is no folder .*/no/such to write rows.jsonl in"),
        (".", "is a folder; expected"),
    ):
        with pytest.raises(InputError, match=rf"^out: .*{message}"):
            generate.run(generate.Config(parent="tiny/sft", data=prompts, out=str(tmp_path / out)), place.store)
    for out in (tmp_path / "file/exported", Path("/proc/exported")):
        with pytest.raises(InputError, match=rf"^out: {out} cannot be made in {out.parent} "):
            merge.run(merge.Config(parent="tiny/sft", out=str(out)), place.store)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(InputError, match=r"^data: there is no file gone.jsonl"):  # negative control: the place is fine
        generate.run(
            generate.Config(parent="tiny/sft", data="gone.jsonl", out=str(tmp_path / "rows.jsonl")), place.store
        )


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo", "reward"])
def test_settings_that_this_base_or_machine_cannot_have(
    stage: str, place: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a record is read. The base has two layers."""
    monkeypatch.setattr(reading, "read", lambda *args: pytest.fail("records were read"))
    stack = {} if stage == "sft" else {"parent_adapter": "stack"}
    label = place.made["pretrain"].digest[:12]
    assert refused(place, stage, adapter=Adapter(layers=3), **stack) == (
        f"adapter.layers is 3, but the base artifact {label} has 2 layers; give at most that."
    )
    assert "activation_offload moves activations from a GPU" in refused(place, stage, activation_offload=True, seed=99)


def test_a_baseline_that_a_row_lacks(place: Pipeline, tmp_path: Path) -> None:
    from align import evaluate

    data = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Hi", "best": "Ho"}, {"prompt": "Hi", "answer": "Ho"}])
    (tmp_path / "judge.py").write_text("def good(completions, **columns):\n    return [1.0] * len(completions)\n")
    judges = {"good": f"{tmp_path / 'judge.py'}:good"}
    with pytest.raises(InputError) as error:
        evaluate.run(
            evaluate.Config(compare=["tiny/sft"], data=data, judges=judges, baselines=["best"], max_new_tokens=8),
            place.store,
        )
    assert str(error.value) == f"{data}:2: 'best' is among baselines, but this row has only answer."


def test_rows_and_judges_come_before_libraries(place: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What `precision: auto` turns out to be is found with torch, whose loading takes longer than rows and judges."""
    from align import dpo, evaluate

    def loads(*_: object) -> None:
        raise AlignError("libraries are loaded")

    monkeypatch.setattr(layout, "computes_in", loads)
    bad = write_rows(tmp_path / "bad.jsonl", [ROW, {**ROW, "chosen": 7}, ROW])
    good = write_rows(tmp_path / "good.jsonl", [ROW])
    with pytest.raises(InputError, match=r'bad.jsonl:2: "chosen" is 7'):
        dpo.run(dpo.Config(parent="tiny/sft", data=bad), place.store)
    (tmp_path / "judge.py").write_text("def mine(answers):\n    return [1.0 for _ in answers]\n")
    given: dict[str, Any] = {"compare": ["tiny/sft"], "data": good, "max_new_tokens": 8}
    with pytest.raises(InputError, match="needs 'answers', which it does not get"):
        evaluate.run(evaluate.Config(**given, judges={"mine": f"{tmp_path / 'judge.py'}:mine"}), place.store)
    with pytest.raises(AlignError, match="libraries are loaded"):  # negative control: there is nothing to refuse
        dpo.run(dpo.Config(parent="tiny/sft", data=good), place.store)


def test_a_judge_runs_once(place: Pipeline, tmp_path: Path) -> None:
    """It is looked at ahead of the work, which takes it as it is."""
    (tmp_path / "judge.py").write_text(
        f"with open({str(tmp_path / 'ran')!r}, 'a') as file:\n    file.write('once ')\n"
        "def mine(prompts, **more):\n    return []\n"
    )
    prompts = [Prompt((Message("user", "Hi"),), where="here")]
    programs: judges.Programs = {}
    for _ in range(2):
        judges.load_all({"mine": f"{tmp_path / 'judge.py'}:mine"}, prompts, programs=programs)
    assert (tmp_path / "ran").read_text() == "once "
    judges.load_all({"mine": f"{tmp_path / 'judge.py'}:mine"}, prompts)  # negative control
    assert (tmp_path / "ran").read_text() == "once once "


# ---- models and artifacts --------------------------------------------------------------------------------------------


def base_folder(place: Pipeline, folder: Path) -> Path:
    return place.store.materialise(place.made["pretrain"], folder, "model")


def test_a_tokenizer_without_eos(place: Pipeline, tmp_path: Path) -> None:
    base = base_folder(place, tmp_path / "base")
    config = base / "tokenizer_config.json"
    words = {k: v for k, v in json.loads(config.read_text()).items() if k != "eos_token"}
    config.unlink()  # a link into the store is read-only
    config.write_text(json.dumps(words))
    message = (
        f"{base}: the tokenizer has no EOS token, so a model could never learn to stop. Set eos_token in "
        "tokenizer_config.json."
    )
    from align import sft

    with pytest.raises(InputError) as error:
        sft.run(sft.Config(base=base, data=place.recipe.parent / "sft.jsonl"), place.store)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_parents_of_the_wrong_kind(place: Pipeline) -> None:
    assert refused(place, "ppo", reward="tiny/sft") == (
        "reward: tiny/sft is an adapter artifact (stage sft), but ppo needs reward there. Train one with `python -m "
        "align.reward`."
    )
    assert refused(place, "dpo", parent="tiny/reward") == (
        "parent: tiny/reward is a reward artifact (stage reward), but dpo needs adapter or model there. It scores what "
        "tiny/sft writes: name that."
    )
    assert refused(place, "sft", parent="tiny/stf") == f"parent: {settings_error(place, 'tiny/stf')}"
    assert refused(place, "dpo", data="tiny/sft").startswith(
        "data: tiny/sft is an adapter artifact (stage sft); expected a file or a data artifact"
    )


def test_a_peft_folder_is_no_parent(place: Pipeline, tmp_path: Path) -> None:
    folder = place.store.materialise(place.made["sft"], tmp_path / "saved", "adapters/0")
    message = f"{folder} is a folder that PEFT saved, no artifact. Import it first: align import {folder} --base MODEL"
    assert refused(place, "dpo", parent=folder) == f"parent: {message}"
    assert "PEFT" not in refused(place, "dpo", parent=tmp_path)  # negative control: any other folder


def test_an_adapter_is_no_base(place: Pipeline) -> None:
    assert refused(place, "sft", base="tiny/sft", parent=None) == (
        "base: tiny/sft is an adapter artifact (stage sft), but a base is a model. Go on from it with --parent, or "
        "merge it first: python -m align.merge."
    )


def settings_error(place: Pipeline, name: str) -> str:
    with pytest.raises(InputError) as error:
        place.store.resolve(name)
    assert "tiny/sft" in str(error.value)  # the nearest name
    return str(error.value)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_reward_model_from_elsewhere(quantize: str | None, place: Pipeline, tmp_path: Path) -> None:
    """Another base, or the same one quantised: an artifact that says so is refused before anything of it is read."""
    sft, reward = (place.made[name] for name in ("sft", "reward"))
    assert sft.base is not None
    elsewhere = Store(tmp_path / "store")
    shutil.copytree(place.store.path, elsewhere.path, dirs_exist_ok=True)
    other = {**sft.base, "quantize": quantize} if quantize else {**sft.base, "digest": "0" * 64, "model": "another"}
    folder = elsewhere.materialise(reward, tmp_path / "files")
    common = {
        "stage": "reward",
        "version": 1,
        "config": reward.config,
        "parents": {},
        "text": reward.text,
        "data": {},
        "metrics": {},
    }
    made = elsewhere.put(folder, kind="reward", base=other, **common)
    there = Pipeline(place.recipe, elsewhere, place.made)
    base = f"artifact {sft.base['digest'][:12]}"
    found = (
        "another (not quantised, weights 000000000000)"
        if not quantize
        else f"{base} (nf4, weights {sft.base['digest'][:12]})"
    )
    assert refused(there, "ppo", reward=made.digest) == (
        f"reward {made.short} was trained on base {found}, the parent on {base} (not quantised, weights "
        f"{sft.base['digest'][:12]}). Both are to be on one base: train the reward with --parent set to the same "
        "artifact."
    )


def test_the_command_line_prints_one_message(place: Pipeline, tmp_path: Path) -> None:
    """`python -m align.ppo --reward` with an SFT artifact: exit code 2, the message alone, no traceback."""
    flags = (
        f"--parent tiny/sft --reward tiny/sft --data {place.recipe.parent / 'prompts.jsonl'} --store {place.store.path}"
    )
    done = subprocess.run([sys.executable, "-m", "align.ppo", *flags.split()], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "reward: tiny/sft is an adapter artifact (stage sft), but ppo needs reward there. Train one with `python -m "
        "align.reward`.\n"
    )


# ---- what is left out, and a full disk -------------------------------------------------------------------------------


def test_equal_pairs_are_left_out_and_counted(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()  # a model is loaded here
    rows = [json.loads(line) for line in (pipeline.recipe.parent / "pairs.jsonl").read_text().splitlines()]
    data = write_rows(tmp_path / "pairs.jsonl", [*rows, {**ROW, "rejected": "Red."}, {**ROW, "rejected": "Red."}])
    made = run(pipeline, "reward", data=data)
    assert (
        "tiny/reward: data: 40 records from JSON lines (prompt, chosen, rejected); left out: 2 pairs whose chosen "
        "equals rejected" in capsys.readouterr().err
    )
    same = pipeline.made["reward"]
    counted = {"left_out/data/pairs_whose_chosen_equals_rejected": 2}
    # they changed nothing but the data's digest and this
    assert made.files == same.files and made.metrics == same.metrics | counted


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_nothing_held_out(stage: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without held-out records a stage has no eval metrics, and all records are trained on."""
    monkeypatch.undo()
    made = run(pipeline, stage, eval_fraction=0.0)
    assert "loss" in made.metrics and not [name for name in made.metrics if name.startswith("eval/")]


def test_a_full_disk(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up while the result is written: exit code 1, nothing committed, and the next run commits."""
    monkeypatch.undo()
    before = committed(pipeline.store)

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(
            AlignError, match=r"the disk is full \(No space left on device\)\. Nothing was committed"
        ) as error:
            run(pipeline, "sft", learning_rate=0.02)
    assert error.value.exit_code == 1
    assert committed(pipeline.store) == before
    run(pipeline, "sft", learning_rate=0.02)
    assert settings(pipeline, "sft").learning_rate == 0.01 and committed(pipeline.store).keys() > before.keys()
