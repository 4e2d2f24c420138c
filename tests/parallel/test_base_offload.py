"""A base that waits in CPU memory: one process, whose layers stream, makes the artifacts that it makes of a whole base.

Here a CPU computes, so that nothing moves between memories: what is seen is that each layer is there for the moment
that it is used, and that nothing else changes. No GPU has run it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from align import evaluate, pretrain, sft
from align.ground.errors import InputError
from align.memory import budget
from align.models import in_parts, weights
from align.parallel import group, shards
from align.recipe import parse_flags
from align.stage import layout
from align.stage.ahead import dry_run
from align.store import Store
from align.training.telling.trackers import Arguments
from tests.conftest import ROOT, Pipeline, write_rows
from tests.memory.workloads import GIB, llama_8b, parts_of, setup
from tests.stage.test_layout import asked
from tests.stages.helpers import forget, run
from tests.store.conftest import put


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[shards.Shards]]:
    """The shards that are cut; the group of this one process is left behind."""
    found: list[shards.Shards] = []
    cut = shards.Shards.__init__

    def noting(self: shards.Shards, *args: Any) -> None:
        cut(self, *args)
        found.append(self)

    monkeypatch.setattr(shards.Shards, "__init__", noting)
    yield found
    group.leave()


def at_rest(unit: Any) -> list[tuple[bool, int]]:
    """Of each weight of a unit: whether it is to lie in CPU memory, and bytes that are gathered now."""
    weights = unit._get_fsdp_state()._fsdp_param_group.fsdp_params
    return [(w.offload_to_cpu, sum(t.untyped_storage().size() for t in w.all_gather_outputs)) for w in weights]


@pytest.mark.parametrize(("stage", "offload"), [("sft", True), ("dpo", True), ("dpo", "disk")])
def test_layers_stream(stage: str, offload: shards.Offload, pipeline: Pipeline, made: list[shards.Shards]) -> None:
    """The same digest, of a fresh adapter and of one on top of another beside a reference."""
    whole = pipeline.made[stage]
    forget(pipeline.store, whole)
    assert run(pipeline, stage, base_offload=offload).digest == whole.digest
    (cut,) = made
    found = [weight for unit in cut.units for weight in at_rest(unit)]
    assert cut.offload == offload and len(found) > 18 and set(found) == {(True, 0)}
    with cut.whole():  # the control: gathered, all of it is there
        assert all(size > 0 for unit in cut.units for _, size in at_rest(unit))


def test_a_base_stays_in_its_files(tmp_path: Path, made: list[shards.Shards], capsys: Any) -> None:
    """The truth is the file: what is written to it while the base is loaded, the base has. The controls are one that
    was not written to, and one that was copied."""
    base = tmp_path / "base"
    shutil.copytree(ROOT / "data/tiny-base", base)
    loaded = in_parts.load_in_parts(base, torch.bfloat16, "disk")
    assert loaded is not None and weights.in_memory(base, loaded[0])[0] == 0
    assert "stays in its files: of 2.7 MiB of matrices 0.0 lie in memory" in capsys.readouterr().err
    held: Any = loaded[0].get_parameter("model.layers.0.mlp.up_proj.weight")
    kept = loaded[0].get_parameter("model.layers.1.mlp.up_proj.weight")
    copied = kept.data.to_local().clone()  # type: ignore[attr-defined]
    file = base / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = data.index(held.to_local().view(torch.uint8).numpy().tobytes())
    with open(file, "r+b") as opened:
        opened.seek(start)
        opened.write(b"\0" * 64)
    assert (held.to_local().view(-1)[:32] == 0).all() and held.to_local().any()
    assert (kept.data.to_local() == copied).all()  # type: ignore[attr-defined]
    held._local_tensor = copied
    assert weights.in_memory(base, loaded[0])[0] == copied.nbytes


def test_what_cannot_stay_in_its_files_is_refused(pipeline: Pipeline, made: list[shards.Shards]) -> None:
    """Weights that would be made anew, in memory."""
    said = r"its files hold BF16, and the run computes in F32.*Take `precision: bf16` or `base_offload: true`"
    with pytest.raises(InputError, match=said):
        in_parts.load_in_parts(ROOT / "data/tiny-base", torch.float32, "disk")
    assert in_parts.load_in_parts(ROOT / "data/tiny-base", torch.float32, True) is not None
    for offload, cannot in (("disk", "weights in nf4 are made when the base is loaded"), (True, "")):
        question = asked(pipeline, base_offload=offload)
        assert question.base is not None
        base = replace(question.base, quantize="nf4")
        assert cannot in layout.cannot(replace(question, base=base), 0)
    assert layout.cannot(replace(question, base=base), 0) == ""


def test_a_rehearsal_refuses_it_too(tmp_path: Path) -> None:
    """By the same sentence, of a folder and of an artifact of the store; the controls are the precision that its files
    hold, and a base that is converted."""
    store = Store(tmp_path / "store")
    shutil.copytree(ROOT / "data/tiny-base", tmp_path / "made" / "model")
    stored = put(store, tmp_path / "made", kind="model", stage="merge", base=None)
    store.tag("stored", stored)
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Which is red?", "completion": "A rose."}] * 4)

    def rehearsed(base: str, **changes: Any) -> str:
        config = sft.Config(base=base, data=data, eval_fraction=0, **changes)
        return str(dry_run.plan(sft.STAGE, config, store))

    said = r"its files hold BF16, and the run computes in F32.*Take `precision: bf16`"
    for base in (str(ROOT / "data/tiny-base"), "stored"):
        with pytest.raises(InputError, match=said):
            rehearsed(base, base_offload="disk", precision="fp32")
        for fine in ({"base_offload": "disk", "precision": "bf16"}, {"base_offload": True, "precision": "fp32"}):
            assert "sft: run, " in rehearsed(base, **fine)


def test_the_flag_takes_a_word_or_none() -> None:
    rest = ["--base", "b", "--data", "d"]
    for words, value in ((["--base_offload"], True), (["--base_offload", "disk"], "disk"), ([], False)):
        assert parse_flags(sft.Config, [*words, *rest], prog="align sft").config.base_offload == value


def test_it_computes_where_its_weights_are_not() -> None:
    """What asks a model where it is hears of the device, and no tensor moves."""

    class Model(nn.Linear):
        device = torch.device("cpu")

    model = Model(2, 2)
    shards.computes_on(model, torch.device("meta"))
    assert model.device.type == "meta" and model.weight.device.type == "cpu"
    assert type(model).__name__ == "Model" and isinstance(model, Model)
    for offload, wanted in ((True, False), (False, None)):
        assert Arguments(settings={"base_offload": offload}, report_to=[]).place_model_on_device is wanted


@pytest.mark.parametrize("module", [sft, evaluate])
def test_copies_are_not_offloaded(module: Any) -> None:
    given = {"base": "b", "data": "d"} if module is sft else {"compare": ["a"], "data": "d"}
    with pytest.raises(ValueError, match="base_offload keeps shards in CPU memory, and parallel is replicate"):
        module.Config(**given, parallel="replicate", base_offload=True)
    assert module.Config(**given, parallel="shard", base_offload=True).base_offload
    full = pretrain.Config(base="b", data="d", method="full", base_offload=True)
    assert "all weights train" in full.without_effect(None)["base_offload"]


def test_what_is_not_cut_is_refused(pipeline: Pipeline) -> None:
    """In one process too, which a whole base does not trouble."""
    dora = asked(pipeline, base_offload=True, adapter={"method": "dora", "rank": 4})
    for look in (lambda: layout.in_shards(dora, 0), lambda: layout.check_asked(dora)):
        with pytest.raises(InputError, match=r"base_offload is true, which cuts the base, but adapter\.method dora"):
            look()
    assert not layout.in_shards(asked(pipeline, adapter={"method": "dora", "rank": 4}), 0)


def test_the_plan_leaves_the_base_out() -> None:
    """8 B weights in bf16 and no more on a GPU than three layers of them, or the matrix of the vocabulary twice; a
    budget that is too small for the base is told so. On the CPU, where they are, they count."""
    whole, waiting = (setup(shape=llama_8b(), base_offload=offload) for offload in (False, True))
    before, after = (parts_of(budget.plan(work), "load") for work in (whole, waiting))
    assert before["base in bf16"] > 14 * GIB and after == {"layers gathered": 2 * 2 * 128256 * 4096}
    alone, together = budget.proposals(whole, 20 * GIB), budget.proposals(whole, 6 * GIB)
    assert {"base_offload": True} in [choice.settings for choice in alone]
    assert [choice.settings.get("base_offload") for choice in together] == [True]
    assert not any("base_offload" in choice.settings for choice in budget.proposals(waiting, 6 * GIB))
    lean = {"activation_checkpointing": True, "tokens_per_microbatch": 1024}  # docs/scale.md
    peaks = [budget.plan(setup(shape=llama_8b(), base_offload=offload, **lean)).peak.bytes for offload in (True, False)]
    assert [round(peak / GIB, 1) for peak in peaks] == [3.5, 16.5]
    again = setup(shape=llama_8b(), base_offload=True, quantize="nf4")
    assert "base in nf4" in parts_of(budget.plan(again), "load"), "which is quantised on the GPU, whole"
    assert "base in nf4" not in parts_of(budget.plan(again), "backward")
