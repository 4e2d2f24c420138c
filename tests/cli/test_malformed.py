"""Words and files that a command cannot use: one sentence, exit code 2, nothing made, whatever the word is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from align import sft
from align.cli import dispatch
from align.data.files.sources import data_files
from align.ground.disk import locked
from align.ground.errors import InputError
from align.ground.terminal import SCREEN, _laid_out, overheard, say
from align.guard.rl import rollout_signs
from align.guard.rollout_signs import SIGNS
from align.recipe import load_recipe, parse_flags
from align.recipe.document import read_yaml
from align.recipe.sweep import RUNS_LIMIT
from align.rendering.tokenizer import load_tokenizer
from align.rl.server import checks
from align.rl.server.settings import RolloutServer
from align.store import Store
from align.store.live import News
from tests.conftest import ROOT, Pipeline


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ls", "--jso"], "align ls: unrecognized arguments: --jso; did you mean --json?"),
        (["run", "r.yaml", "--se", "seed=1"], "align run: unrecognized arguments: --se seed=1; did you mean --set?"),
        (["compare", "a", "b", "--html", ""], "align compare: --html is empty"),
        (["checkout", "a", ""], "align checkout: DIR is empty"),
        (["import", "x", "--base", ""], "align import: --base is empty"),
        (["data", "inspect", "x.jsonl", "--chat_template", "y"], "--chat_template goes with --base MODEL"),
        (["verify", "--store", "."], "there is no store at"),
        (["gc", "--store", "."], "there is no store at"),
        (["push", "file"], "file is a file. Expected a URL"),
        (["launch", "r.yaml", "--processes", "1", "--logs", "file"], "--logs file is a file; expected a folder."),
        (["list"], "did you mean ls?"),
    ],
)
def test_words_that_a_command_cannot_use(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGN_STORE", raising=False)
    Path("file").touch()
    with pytest.raises(InputError) as error:
        dispatch(words)
    assert told in str(error.value) and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dry-run=maybe"], '--dry-run: expected true or false, found the text "maybe".'),
        (["--json="], "--json: expected true or false, found an empty text."),
        (["--memory="], "--memory needs a value: a size such as 24GiB."),
        (["--config", "r.yaml"], "r.yaml is a recipe, which `align run r.yaml` runs"),
        (["--max_steps="], "--max_steps is empty. Give it a value, null for none, or leave it out."),
        (["--batch_size", "99999999999999999999"], "at most 1,000,000,000, found"),
        (["--max_steps", "9223372036854775808"], "at most 1,000,000,000, found"),
        (["--max_length", "100000000000"], "at most 1,000,000,000, found"),
        (["--epochs", "1e300"], "at most 1,000,000, found"),
        (["--max_steps= "], "--max_steps is empty. Give it a value, null for none, or leave it out."),
        (
            ["--activation_checkpointing", "yes"],
            'activation_checkpointing: expected true or false, found the text "yes"',
        ),
        (["--watch_prompts", "99999999999999999999"], "at most 1,000,000,000, found"),
        (["--lr_scheduler_kwargs", "x"], "a mapping of names to a whole number, a number or text"),
    ],
)
def test_settings_that_a_stage_cannot_use(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("stages: {sft: {}}\n")
    with pytest.raises(InputError) as error:
        parse_flags(sft.Config, ["--base", "b", "--data", "d", *words], prog="align sft")
    assert told in str(error.value)


def test_switches_that_are_said_to_be_off_are_off() -> None:
    parsed = parse_flags(sft.Config, ["--base", "b", "--data", "d", "--dry-run=false", "--json"], prog="align sft")
    assert not parsed.dry_run and parsed.json


def test_a_file_of_settings_without_an_end(tmp_path: Path) -> None:
    """A device that never ends, and a pipe that nobody writes to; one that somebody does (the control) is read."""
    with pytest.raises(InputError, match="more than the 1,048,576 characters"):
        read_yaml("/dev/zero")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="expected a mapping of settings, found null"):
        read_yaml(pipe)
    reading, writing = os.pipe()
    os.write(writing, b"seed: 1\n")
    os.close(writing)
    assert read_yaml(f"/dev/fd/{reading}").values == {"seed": 1}
    os.close(reading)


def test_no_message_repeats_a_word_of_no_end() -> None:
    assert _laid_out(f"there is no file {'x' * 5000}.") == f"there is no file {'x' * 200}…"
    assert _laid_out(f"there is no file {'x' * 300}.") == f"there is no file {'x' * 300}."


@pytest.mark.parametrize("setting", [{"tie_word_embeddings": "yes"}, {"num_attention_heads": 0}, {"hidden_size": -1}])
def test_a_config_is_not_taken_for_a_tokenizer(setting: dict[str, object], tmp_path: Path) -> None:
    base = shutil.copytree(ROOT / "data/tiny-base", tmp_path / "base")
    load_tokenizer(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | setting))
    with pytest.raises(InputError, match=r"config\.json: transformers .* cannot use it"):
        load_tokenizer(base)


def test_a_parent_that_is_at_work_still(tmp_path: Path) -> None:
    """It has no name yet; nor has one that was stopped, which the same command goes on with."""
    store, run = Store(tmp_path / "store"), tmp_path / "store/runs/key"
    run.mkdir(parents=True)
    News(run).begin("my-sft", "sft", {})
    with locked(run / "lock"), pytest.raises(InputError, match=r"my-sft is at work still .*align watch my-sft"):
        store.resolve("my-sft")
    with pytest.raises(InputError, match="my-sft was stopped or failed before it was made"):
        store.resolve("my-sft")
    with pytest.raises(InputError, match="'other' is no name and no digest in"):
        store.resolve("other")


def test_a_server_is_asked_ahead_of_a_run_and_its_folder_is_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rollouts.server: the rollout server at http://127.0.0.1:1 does not answer"):
        checks.check_there(RolloutServer(server="http://127.0.0.1:1"))
    with pytest.raises(InputError, match=r"rollouts.folder: there is no folder .*typo"):
        checks.check_place(RolloutServer(server="http://127.0.0.1:1", folder=str(tmp_path / "typo/adapters")))
    checks.check_place(RolloutServer(server="http://127.0.0.1:1", folder=str(tmp_path / "adapters")))


@pytest.mark.filterwarnings("ignore:.* found in sys.modules after import:RuntimeWarning")  # by tests before
@pytest.mark.parametrize(
    "stage", [["ppo", "--reward", "tiny/reward", "--trust_reward"], ["grpo", "--judges.long", "long.py:score"]]
)
def test_a_dry_run_asks_a_server_that_is_not_there(
    stage: list[str],
    trained: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole command. Negative control: without a server the rehearsal ends well."""
    monkeypatch.chdir(tmp_path)
    Path("long.py").write_text("def score(completions, **kwargs):\n    return [len(c) for c in completions]\n")
    data = ["--parent", "tiny/sft", "--data", str(trained.recipe.parent / "prompts.jsonl"), "--dry-run"]
    words = [*stage, *data, "--store", str(trained.store.path)]
    with pytest.raises(SystemExit, match="2"):
        dispatch([*words, "--rollouts.server", "http://127.0.0.1:1"])
    said = capsys.readouterr()
    assert not said.out and "rollouts.server: the rollout server at http://127.0.0.1:1 does not answer" in said.err
    dispatch(words)
    assert "optimizer steps" in capsys.readouterr().out


def test_a_recipe_has_so_many_stages(tmp_path: Path) -> None:
    """A rehearsal of 2,000 would take minutes."""
    for stages in (RUNS_LIMIT, RUNS_LIMIT + 1):
        bodies = "".join(f"  s{i}: {{kind: sft, data: d.jsonl}}\n" for i in range(stages))
        (tmp_path / f"{stages}.yaml").write_text(f"base: b\nstages:\n{bodies}")
    assert len(load_recipe(tmp_path / f"{RUNS_LIMIT}.yaml", {"sft": sft.Config}).stages) == RUNS_LIMIT
    with pytest.raises(InputError, match=r"201\.yaml: stages: 201 of them, and a recipe has at most 200"):
        load_recipe(tmp_path / f"{RUNS_LIMIT + 1}.yaml", {"sft": sft.Config})


def test_advice_is_for_who_draws() -> None:
    assert rollout_signs(None, 0) == SIGNS
    served, again = rollout_signs(RolloutServer(server="http://a:1"), 0), rollout_signs(None, 2)
    changed = {name for name in SIGNS if served[name] != SIGNS[name]}
    assert changed == {"negative_kl", "sampler_gap"} and "server" in served["sampler_gap"].cause
    assert {name for name in SIGNS if again[name] != SIGNS[name]} == {"no_variance"}
    assert "raise resample" in again["no_variance"].remedy and again["no_variance"].seen is SIGNS["no_variance"].seen


def test_a_data_artifact_that_was_checked_out_is_its_rows(tmp_path: Path) -> None:
    for name in ("data.jsonl", "aside.jsonl", "report.json"):
        (tmp_path / name).write_text("{}\n")
    assert data_files(tmp_path) == [tmp_path / "data.jsonl"]
    (tmp_path / "other.csv").write_text("a\n1\n")
    with pytest.raises(InputError, match="files of several kinds"):
        data_files(tmp_path)


def test_what_is_overheard_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    with overheard() as lines:
        say("one\ntwo")
    say("three")
    assert lines == ["one", "two"] and SCREEN.overheard is None
    assert capsys.readouterr().err.splitlines() == ["three"]


def test_a_word_that_is_no_text_is_refused(trained: Pipeline, tmp_path: Path) -> None:
    """Bytes that are no UTF-8, and a link that leads to itself: neither is made, nor a traceback."""
    (tmp_path / "loop").symlink_to("loop")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for word, told in ((b"\xff", "is no UTF-8. Give files, and all else, names that are."), (b"loop", "loop: ")):
        command = [sys.executable, "-m", "align", "push", word, "tiny/sft", "--store", str(trained.store.path)]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        assert ended.returncode in (1, 2) and told in ended.stderr.decode() and b"Traceback" not in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
