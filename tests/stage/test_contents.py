"""A special token in a row far down is refused before anything trains, in the words of the run itself, which are the
truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import align
from align import dpo, kto, pretrain, sft
from align.ground.errors import InputError
from align.stage.ahead.dry_run import plan
from align.store import Store
from tests.conftest import ROOT, write_rows

TINY, TOKEN = str(ROOT / "data/tiny-base"), "<|end|>"
PLAIN: dict[str, dict[str, Any]] = {
    "sft": {"prompt": "What is {}?", "completion": "It is {}."},
    "dpo": {"prompt": "What is {}?", "chosen": "It is {}.", "rejected": "No."},
    "kto": {"prompt": "What is {}?", "completion": "It is {}.", "label": True},
    "pretrain": {"text": "It is {}, and the text goes on."},
}
STAGES: dict[str, Any] = {"sft": sft, "dpo": dpo, "kto": kto, "pretrain": pretrain}


def rows(kind: str, count: int = 61) -> list[dict[str, Any]]:
    made = [{k: v.format(i) if isinstance(v, str) else v for k, v in PLAIN[kind].items()} for i in range(count)]
    return [row | {"label": i % 2 == 0} for i, row in enumerate(made)] if kind == "kto" else made


def config(folder: Path, kind: str, data: list[dict[str, Any]], **more: Any) -> Any:
    file = write_rows(folder / "rows.jsonl", data)
    settings = {"precision": "fp32", "threads": 1, "max_steps": 1, "name": "x", "seed": 1, **more}
    return STAGES[kind].Config(base=TINY, data=str(file), **settings)


@pytest.mark.parametrize(
    ("kind", "key"), [("sft", "prompt"), ("dpo", "rejected"), ("kto", "prompt"), ("pretrain", "text")]
)
def test_the_last_row_holds_a_special_token(tmp_path: Path, kind: str, key: str) -> None:
    """The controls: the same rows without it, and with it where it is to be text."""
    data, store = rows(kind), Store(tmp_path / "store")
    plan(STAGES[kind].STAGE, config(tmp_path, kind, data), store)
    data[-1][key] = f"x {TOKEN} y"
    plan(STAGES[kind].STAGE, config(tmp_path, kind, data, special_tokens="text"), store)
    plan(STAGES[kind].STAGE, config(tmp_path, kind, data, bad_rows="drop"), store)
    said = []
    for refuse in (lambda c: plan(STAGES[kind].STAGE, c, store), lambda c: STAGES[kind].run(c, store)):
        with pytest.raises(InputError, match=r"rows.jsonl:61:? .*holds the special token '<\|end\|>'") as error:
            refuse(config(tmp_path, kind, data))
        said.append(str(error.value))
    assert said[0] == said[1]


def test_the_end_of_an_answer_is_cut_and_not_refused(tmp_path: Path) -> None:
    data = rows("sft")
    data[-1]["completion"] += TOKEN
    plan(sft.STAGE, config(tmp_path, "sft", data), Store(tmp_path / "store"))
    data[-1]["completion"] += " and more"
    with pytest.raises(InputError, match=r"rows.jsonl:61: message 2"):
        plan(sft.STAGE, config(tmp_path, "sft", data), Store(tmp_path / "store"))


def test_rows_that_are_not_read(tmp_path: Path) -> None:
    """The rehearsal knows the first and the last thousand of a long file, and no others."""
    data, store = rows("sft", 2_100), Store(tmp_path / "store")
    for at, found in ((1_050, False), (900, True), (2_099, True)):
        bad = [row | {"prompt": TOKEN} if i == at else row for i, row in enumerate(data)]
        asked = config(tmp_path, "sft", bad)
        if not found:
            plan(sft.STAGE, asked, store)
            continue
        with pytest.raises(InputError, match=f"rows.jsonl:{at + 1}: "):
            plan(sft.STAGE, asked, store)


def test_a_recipe_refuses_it_before_its_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With or without --dry-run, naming the recipe's line. The control: without this look the first stage is trained
    first."""
    data = rows("sft")
    write_rows(tmp_path / "good.jsonl", data)
    write_rows(tmp_path / "rows.jsonl", [*data[:-1], {"prompt": TOKEN, "completion": "x"}])
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"""\
name: r
base: {TINY}
precision: fp32
threads: 1
max_steps: 1
stages:
  first: {{kind: sft, data: good.jsonl}}
  second: {{kind: sft, data: rows.jsonl}}
""")
    store = Store(tmp_path / "store")
    for dry_run in (True, False):
        with pytest.raises(InputError) as error:
            align.run(recipe, store, dry_run=dry_run)
        assert f"r.yaml:8: stages.second.data: {tmp_path / 'rows.jsonl'}:61: message 1 (user) holds" in str(error.value)
        assert not store.pointers("refs")
    monkeypatch.setattr("align.stage.ahead.rehearsal.refused", lambda *_: None)
    with pytest.raises(InputError, match=r"rows.jsonl:61: message 1"):
        align.run(recipe, store)
    assert [*store.pointers("refs")] == ["r/first"]


def test_the_columns_of_a_recipe_are_told_as_it_has_them(tmp_path: Path) -> None:
    """And taken so; a command line is told flags."""
    (tmp_path / "f.csv").write_text("My Frage,Die Antwort\n" + "".join(f"ask {i},say {i}.\n" for i in range(30)))
    recipe = tmp_path / "r.yaml"
    text = f"name: r\nbase: {TINY}\nprecision: fp32\nstages:\n  sft:\n    data: f.csv\n    max_steps: 1\n"
    recipe.write_text(text)
    store = Store(tmp_path / "store")
    for dropped in ([], ["stages.sft.bad_rows=drop"]):
        with pytest.raises(InputError) as error:
            align.run(recipe, store, dry_run=True, overrides=dropped)
        assert "--columns" not in str(error.value)
        assert "`columns: {prompt: My Frage, completion: Die Antwort}` in the recipe" in str(error.value)
    with pytest.raises(InputError, match=r"r.yaml:6: stages.sft.data: .*f.csv:2: "):
        align.run(recipe, store, dry_run=True)
    alone = sft.Config(base=TINY, data=str(tmp_path / "f.csv"), max_steps=1)
    with pytest.raises(InputError, match=r"f.csv:2: .*--columns.prompt 'My Frage' --columns.completion 'Die"):
        plan(sft.STAGE, alone, store)
    recipe.write_text(f"{text}    columns: {{prompt: My Frage, completion: Die Antwort}}\n")
    align.run(recipe, store, dry_run=True)
