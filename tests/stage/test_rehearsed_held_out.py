"""A dry run refuses what a run refuses in the rows that it holds out to measure. The truth is `split_by_prompt` and the
run itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import align
from align import dpo
from align.data.formats import read_conversations, read_preferences
from align.data.split import split_by_prompt
from align.ground.errors import InputError
from align.sft import STAGE, Config, run
from align.stage.ahead.dry_run import plan
from align.store import Store
from tests.conftest import ROOT, write_rows

ROWS = [{"prompt": f"What is {i} plus {i + 1}?", "completion": f"It is {2 * i + 1}."} for i in range(12)]
BAD: dict[str, dict[str, Any]] = {
    "too long": {"completion": "very " * 300 + "much."},
    "thoughts that the template leaves out": {"reasoning_content": "Let me add."},
}


def config(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Config:
    data = write_rows(folder / "data.jsonl", rows)
    base = str(ROOT / "data/tiny-base")
    return Config(base=base, data=str(data), name="x", max_steps=1, precision="fp32", **changes)


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("held", ["eval_fraction", "hold_out"])
def test_a_held_out_row_that_the_run_refuses(tmp_path: Path, fault: str, held: str) -> None:
    """In one sentence, whichever of them meets it first. The control: the same rows whole."""
    share, store = {held: 0.2}, Store(tmp_path / "store")
    plan(STAGE, config(tmp_path, ROWS, **share), store)
    _, out = split_by_prompt(read_conversations(tmp_path / "data.jsonl"), 0.2)
    at = int(out[-1].where.rpartition(":")[2]) - 1
    asked = config(tmp_path, [row | BAD[fault] if i == at else row for i, row in enumerate(ROWS)], **share)
    messages = []
    for refuse in (lambda: plan(STAGE, asked, store), lambda: run(asked, store)):
        with pytest.raises(InputError, match=f"data.jsonl:{at + 1}: ") as error:
            refuse()
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_rows_to_measure_on_that_are_still_to_be_made(tmp_path: Path) -> None:
    """None of the others is held out in their place: of one prompt all rows are left to train on. The control: without
    them there is nothing to measure on."""
    write_rows(tmp_path / "rows.jsonl", ROWS)
    write_rows(tmp_path / "one.jsonl", ROWS[:1])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""\
name: r
base: {ROOT / "data/tiny-base"}
precision: fp32
stages:
  side: {{kind: split, data: rows.jsonl, side: held, fraction: 0.25}}
  sft: {{data: one.jsonl, eval_data: side, eval_steps: 1, max_steps: 2}}
""")
    store = Store(tmp_path / "store")
    align.run(recipe, store, dry_run=True)
    with pytest.raises(InputError, match="eval_steps is set, but no record is held out"):
        align.run(recipe, store, dry_run=True, overrides=["stages.sft.eval_data=null"])


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_estimates_are_of_the_whole(tmp_path: Path, share: float) -> None:
    """Of 12,000 rows 2,000 are looked at. Prompts, not rows, are at most 1,000, and what is beyond is trained on. The
    control: limited by rows, neither share would come near."""
    prompts = [f"What is {i} plus {i + 1}?" for i in range(3000)]
    rows = [{"prompt": p, "chosen": f"It is {k}.", "rejected": "Who knows?"} for p in prompts for k in range(4)]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    train, held = split_by_prompt(read_preferences(data), share)
    assert len(held) == (4000 if share == 0.5 else pytest.approx(1200, abs=150)) and len(train) + len(held) == 12000
    asked = dpo.Config(base=str(ROOT / "data/tiny-base"), data=str(data), name="x", eval_fraction=share)
    said = "\n".join(plan(dpo.STAGE, asked, Store(tmp_path / "store")).looks)
    found = re.search(r"about ([\d,]+) to train on, about ([\d,]+) held out", said)
    assert found, said
    told = [int(figure.replace(",", "")) for figure in found.groups()]
    assert sum(told) == 12000 and told == pytest.approx([len(train), len(held)], abs=240)
    assert told != pytest.approx([len(train), 1000], abs=150)
