"""What `align ls`, `show` and `lineage` print about a small store, against lines written by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from align.ground.errors import InputError
from align.ground.paths import short_path
from align.report.code import LANGUAGE, answer_lines, load_lines
from align.report.lists import lineage_text, ls_table
from align.report.text import show_text
from align.store import Artifact, Store, digest_json
from tests.store.conftest import fill, put

BASE = {"model": "tiny-base", "revision": None, "digest": "9" * 64, "quantize": None}
ADAPTER = {
    "adapters/0/adapter_config.json": b"{}",
    "adapters/0/adapter_model.safetensors": b"w" * 2048,
    "tokenizer/tokenizer.json": b"{}",
}
SECOND = {"adapters/1/adapter_config.json": b"{}"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """pretrain (a model); sft on tiny-base -> reward (nf4, with a head); ppo from both, stacked on the model."""
    store = Store(tmp_path / "store")
    model = put(
        store, fill(tmp_path / "model", {"model/config.json": b"{}"}), kind="model", stage="pretrain", base=None
    )
    config = {"adapter": {"rank": 16}, "learning_rate": 2e-4, "eval_data": None, "fast": True}
    sft = put(
        store,
        fill(tmp_path / "sft", ADAPTER),
        base=BASE,
        config=config,
        data={"data": "8" * 64},
        metrics={"eval/loss": 1.23456789},
    )
    head = fill(tmp_path / "reward", ADAPTER | {"head.safetensors": b"head"})
    reward = put(store, head, kind="reward", stage="reward", parents={"parent": sft}, base=BASE | {"quantize": "nf4"})
    on_model = BASE | {"model": f"artifact:{model.digest}", "digest": model.digest}
    ppo = put(
        store,
        fill(tmp_path / "ppo", ADAPTER | SECOND),
        stage="ppo",
        parents={"parent": sft, "reward": reward},
        base=on_model,
    )
    for artifact in (model, sft, reward, ppo):
        store.tag(f"q/{artifact.stage}", artifact)
    with store.run(digest_json("sft")) as run:
        run.finish(sft, {"seconds": 95.2, "tokens_per_second": 12345.6, "peak_memory_bytes": 1.5 * 2**30})
    return store


def resolve(store: Store, name: str) -> Artifact:
    return store.resolve(f"q/{name}")


def test_ls(store: Store):
    made = store.costs()[resolve(store, "sft").digest]["finished"]
    for stage in ("ppo", "pretrain", "reward"):
        os.utime(
            store.manifest_path(resolve(store, stage).digest), (1795245900,) * 2
        )  # date -d "2026-11-21 07:25 UTC" +%s
    expected = [["NAME", "KIND", "STAGE", "DIGEST", "SIZE", "CREATED", "(UTC)"]]
    for stage, kind, size in (
        ("ppo", "adapter", "2.0 KiB"),
        ("pretrain", "model", "2 B"),
        ("reward", "reward", "2.0 KiB"),
        ("sft", "adapter", "2.0 KiB"),
    ):
        created = [made[:10], made[11:16]] if stage == "sft" else ["before", "2026-11-21", "07:25"]  # when it came
        expected.append([f"q/{stage}", kind, stage, resolve(store, stage).short, *size.split(), *created])
    assert [line.split() for line in ls_table(store).splitlines()] == expected
    assert ls_table(Store("/nonexistent")) == "/nonexistent holds no named artifact."


def test_ls_names_the_damaged_and_lists_the_rest(store: Store):
    path = store.manifest_path(resolve(store, "sft").digest)
    path.unlink()
    lines = ls_table(store).splitlines()
    assert len(lines) == 5 and [line for line in lines if "damaged" in line] == [
        line for line in lines if line.startswith("q/sft ")
    ]


def test_show(store: Store):
    store.note_place("9" * 64, Path("/models/tiny-base"))
    sft = resolve(store, "sft")
    made = store.costs()[sft.digest]["finished"]
    answer = "\n".join(f"  {line}" for line in answer_lines(LANGUAGE))
    assert (
        show_text(store, "q/sft")
        == f"""\
q/sft
digest   {sft.digest}
         adapter by sft, version 1
cost     made {made[:10]} {made[11:16]} UTC, in 1 min 35 s, 12,346 tokens/s, peak memory 1.50 GiB
base     tiny-base  not quantised, weights 999999999999
         at /models/tiny-base
text     eos  2
data     data  888888888888
config   adapter.rank   16
         eval_data      none
         fast           true
         learning_rate  0.0002
metrics  eval/loss  1.23457
files        2 B  adapters/0/adapter_config.json
         2.0 KiB  adapters/0/adapter_model.safetensors
             2 B  tokenizer/tokenizer.json

Load it with Align:
  import align
  model, tokenizer = align.load("q/sft", align.Store("{store.path}"))

Load it with PEFT, after
  align checkout q/sft DIR

  from peft import PeftModel
  from transformers import AutoModelForCausalLM, AutoTokenizer
  base = AutoModelForCausalLM.from_pretrained("/models/tiny-base")
  model = PeftModel.from_pretrained(base, "DIR/adapters/0", adapter_name="adapter_0")
  tokenizer = AutoTokenizer.from_pretrained("DIR/tokenizer")
{answer}"""
    )
    assert show_text(store, sft.digest[:10]) == show_text(store, "q/sft") == show_text(store, sft)
    assert "align locate FOLDER" in "\n".join(
        load_lines(store, replace(sft, base={**sft.base, "digest": "8" * 64}), "x")
    )
    with pytest.raises(InputError, match="did you mean q/sft"):
        show_text(store, "sft")


def test_show_says_what_to_load(store: Store):
    """A stack: every adapter in order, on the artifact that is its base. A quantised base: as it was trained on. A
    model: without PEFT."""
    ppo = "\n".join(load_lines(store, resolve(store, "ppo"), "q/ppo"))
    lines = [
        "align checkout q/ppo DIR",
        f"align checkout {resolve(store, 'pretrain').short} BASE",
        'from_pretrained("BASE/model")',
    ]
    lines += ['"DIR/adapters/0", adapter_name="adapter_0")', 'load_adapter("DIR/adapters/1", adapter_name="adapter_1")']
    lines += ['set_adapter(["adapter_0", "adapter_1"], inference_mode=True)']
    assert [ppo.find(line) for line in lines] == sorted(ppo.find(line) for line in lines) and ppo.find(lines[0]) > 0
    there = "\n".join(load_lines(store, resolve(store, "ppo"), "q/ppo", "out"))
    assert "align checkout q/ppo" not in there and '"out/adapters/0"' in there and " BASE" in there
    reward = "\n".join(load_lines(store, resolve(store, "reward"), "q/reward"))
    assert (
        'load_in_4bit=True, bnb_4bit_quant_type="nf4"' in reward
        and "DIR/head.safetensors" in reward
        and "set_adapter" not in reward
    )
    model = "\n".join(load_lines(store, resolve(store, "pretrain"), "q/pretrain"))
    assert 'from_pretrained("DIR/model")' in model and "peft" not in model
    for text in (ppo, reward, model):
        compile(
            "\n".join(line[2:] for line in text.splitlines() if line.startswith("  ") and "align checkout" not in line),
            "shown",
            "exec",
        )


def test_lineage(store: Store):
    short = {stage: resolve(store, stage).short for stage in ("pretrain", "sft", "reward", "ppo")}
    assert (
        lineage_text(store, "q/ppo")
        == f"""\
q/ppo  adapter by ppo  {short["ppo"]}
├─ parent: q/sft  adapter by sft  {short["sft"]}
│  ├─ base: tiny-base  not quantised, weights 999999999999
│  └─ data: sha256 888888888888
└─ reward: q/reward  reward by reward  {short["reward"]}
   └─ parent: q/sft  adapter by sft  {short["sft"]}  (above)"""
    )
    assert lineage_text(store, short["pretrain"]) == f"q/pretrain  model by pretrain  {short['pretrain']}"


def test_what_was_made_of_an_artifact_with_two_names(store: Store) -> None:
    """Which of them it was taken by is written nowhere, so both are said; what was asked for goes by the name that it
    was asked for."""
    sft = resolve(store, "sft")
    assert f"parent  q/sft     {sft.short}" in show_text(store, "q/ppo")  # negative control: one name
    store.tag("another", sft)
    assert f"parent  another = q/sft  {sft.short}" in show_text(store, "q/ppo")
    assert f"├─ parent: another = q/sft  adapter by sft  {sft.short}" in lineage_text(store, "q/ppo")
    assert lineage_text(store, "q/sft").startswith(f"q/sft  adapter by sft  {sft.short}")


def test_listing_costs_no_torch(store: Store):
    program = "import sys; from align.report.lists import *; from align.report.text import *; s = Store(sys.argv[1])\n"
    program += (
        "print(ls_table(s), show_text(s, 'q/ppo'), lineage_text(s, 'q/ppo')); assert not {'torch', 'numpy', "
        "'pydantic'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, str(store.path)]
    assert (
        "q/ppo"
        in subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
    )


def test_a_path_is_shown_as_short_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From the working folder, from the home folder, or as it is, whichever is shorter."""
    (work := tmp_path / "home/work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(work)
    assert short_path(work / "store/page.html") == "store/page.html"
    assert short_path(tmp_path / "home/other/page.html") == "~/other/page.html"
    assert short_path(Path("/p.html")) == "/p.html"
