"""Before a run: rows at both ends of every data file are read, torch-free. In it: what is read is what was hashed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import align
from align import generate, sft
from align.ground.errors import AlignError, InputError
from align.recipe import Base
from align.stage.ahead.dry_run import plan
from align.store import Store
from tests.conftest import ROOT, Pipeline, write_rows

ROWS = [{"prompt": f"What is {i} plus 7?", "completion": f"It is {i + 7}.", "id": i} for i in range(30)]


def config(data: Path, **more: Any) -> Any:
    base = Base(model=str(ROOT / "data/tiny-base"))
    return sft.Config(
        base=base, data=str(data), **{"max_steps": 2, "batch_size": 4, "threads": 1, "precision": "fp32", **more}
    )


def looks(config: Any, store: Store) -> list[str]:
    """What a dry run says of the shape of rows, below the line that says whether and why it is to run."""
    lines = "\n".join(plan(sft.STAGE, config, store).looks).splitlines()
    return lines[: next(i for i, line in enumerate(lines) if "a row has at most" in line)]


def test_a_dry_run_says_what_the_rows_are(tmp_path: Path) -> None:
    data, store = write_rows(tmp_path / "rows.jsonl", ROWS), Store(tmp_path / "store")
    line = "sft: data: 30 rows of JSON lines (prompt, completion); not used: id"
    assert looks(config(data), store) == [line]
    long = write_rows(tmp_path / "long.jsonl", ROWS * 100)
    ends = "; the first and the last 1,000 were read"
    assert looks(config(long), store) == [line.replace("30", "3,000") + ends]


@pytest.mark.parametrize("last", [True, False])
def test_a_dry_run_ends_at_a_bad_row(tmp_path: Path, last: bool) -> None:
    bad = {"prompt": "x", "completion": ""}
    data = write_rows(tmp_path / "rows.jsonl", [*ROWS, bad] if last else [bad, *ROWS])
    with pytest.raises(InputError, match=rf"rows.jsonl:{31 if last else 1}: \"completion\" is empty"):
        looks(config(data), Store(tmp_path / "store"))
    found, example = looks(config(data, bad_rows="drop"), Store(tmp_path / "store"))
    assert 'left out: 1 bad row: "completion" is empty' in found and example.startswith("  left out: ")


def test_the_command_line(tmp_path: Path) -> None:
    """Exit code 2 with the row's place, and nothing that models are made with."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x", "completion": "y", "label": true}\n')
    code = (
        "import sys\nfrom align.cli import dispatch\nfrom align.ground.terminal import guarded\n"
        f"guarded(lambda: dispatch(['sft', '--base', {str(ROOT / 'data/tiny-base')!r}, '--data', 'rows.jsonl', "
        "'--dry-run']))\n"
        "assert 'peft' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (
        run.returncode == 2
        and run.stderr.startswith('rows.jsonl:1: has "label", but ')
        and "Traceback" not in run.stderr
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and "sft: data: 1 rows of JSON lines (prompt, completion)" in run.stdout


def test_a_recipe_looks_at_the_rows_of_all_its_stages(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of those whose turn comes later; what an earlier stage is to make is not there yet."""
    overrides = ["stages.sft.seed=9"]
    align.run(pipeline.recipe, pipeline.store, dry_run=True, overrides=overrides)
    printed = capsys.readouterr().out
    assert "tiny/sft: data: 40 rows of JSON lines (prompt, completion)\n" in printed
    assert (
        "tiny/reward: data: 40 rows of JSON lines (prompt, chosen, rejected)\n" in printed
        and "tiny/pretrain: data" not in printed
    )
    pairs = pipeline.recipe.parent / "pairs.jsonl"
    pairs.write_text(pairs.read_text() + '{"prompt": "x", "chosen": "y"}\n')
    for dry_run in (True, False):
        with pytest.raises(InputError, match=r"pairs.jsonl:41: \"rejected\" is missing"):
            align.run(pipeline.recipe, pipeline.store, dry_run=dry_run, overrides=overrides)


def test_bad_rows_are_in_the_manifest(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "x", "completion": ""}, {"prompt": "x", "completion": "A<|end|>b"}]
    data, store = write_rows(tmp_path / "rows.jsonl", rows), Store(tmp_path / "store")
    made = sft.run(config(data, bad_rows="drop"), store)
    counts = {name: n for name, n in made.metrics.items() if name.startswith("left_out/")}
    assert counts.pop("left_out/data/bad_rows_completion_is_empty") == 1
    ((name, n),) = counts.items()
    assert n == 1 and name.startswith("left_out/rendering/bad_rows_message_n_assistant_holds_the_special")
    assert made.config["bad_rows"] == "drop"
    clean = sft.run(config(write_rows(tmp_path / "clean.jsonl", ROWS)), store)
    assert not [name for name in clean.metrics if name.startswith("left_out/")]
    weights = "adapters/0/adapter_model.safetensors"
    assert made.files[weights] == clean.files[weights]  # what was left out had no part in it


def test_data_that_change_between_hashing_and_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is committed; read as hashed, the same rows are."""
    data, store = write_rows(tmp_path / "rows.jsonl", ROWS), Store(tmp_path / "store")
    real = Store.run

    # what another process does while this one waits for its turn
    def changing(self: Store, *args: Any, **more: Any) -> Any:
        write_rows(data, ROWS[::-1])
        return real(self, *args, **more)

    monkeypatch.setattr(Store, "run", changing)
    with pytest.raises(AlignError, match=r"rows.jsonl changed between being hashed and being read"):
        sft.run(config(data), store)
    assert not list(store.artifacts())
    monkeypatch.undo()
    assert sft.run(config(data), store).data["data"] == sft.run(config(data), store).data["data"]


def test_a_template_that_changes_between_hashing_and_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, store, template = write_rows(tmp_path / "rows.jsonl", ROWS), Store(tmp_path / "store"), tmp_path / "t.jinja"
    own = (ROOT / "data/tiny-base/chat_template.jinja").read_text()
    template.write_text(own)
    real = Store.run

    def changing(self: Store, *args: Any, **more: Any) -> Any:
        template.write_text("{# another #}" + own)
        return real(self, *args, **more)

    monkeypatch.setattr(Store, "run", changing)
    with pytest.raises(AlignError, match=r"t.jinja changed between being hashed and being read"):
        sft.run(config(data, chat_template=str(template)), store)
    monkeypatch.undo()
    assert json.loads(json.dumps(sft.run(config(data, chat_template=str(template)), store).config))["chat_template"]


def test_bad_prompts_are_left_out_of_what_is_sampled(tmp_path: Path) -> None:
    """A prompt that cannot be rendered takes no answer away from the others."""
    rows = [
        {"prompt": "What is 1?", "id": 1},
        {"prompt": "A<|end|>b", "id": 2},
        {"prompt": 3, "id": 3},
        {"prompt": "What is 4?", "id": 4},
    ]
    rows.insert(3, {"prompt": "red " * 300, "id": 5})  # longer than the context
    data, store = write_rows(tmp_path / "rows.jsonl", rows), Store(tmp_path / "store")
    common: dict[str, Any] = {
        "base": Base(model=str(ROOT / "data/tiny-base")),
        "max_new_tokens": 2,
        "threads": 1,
        "precision": "fp32",
    }
    sampled = generate.run(generate.Config(data=str(data), bad_rows="drop", **common), store)
    assert [row["id"] for row in sampled] == [1, 4]
    right = write_rows(tmp_path / "right.jsonl", [rows[0], rows[4]])
    assert generate.run(generate.Config(data=str(right), **common), store) == sampled
    with pytest.raises(InputError, match=r"rows.jsonl:3: \"prompt\" is 3"):
        generate.run(generate.Config(data=str(data), **common), store)
