"""Stages with adapters on the top layer alone: one result wherever the lower layer's rows are kept, also after an
interruption."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from torch import Tensor

from align import dpo
from align.ground.disk import is_sealed
from align.ground.errors import InputError, Stopped
from align.models.trunk import Trunk
from align.models.trunk_cache import Keeper
from align.packed.pack import Batch
from align.store import Artifact
from tests.conftest import Pipeline
from tests.stages.helpers import forget, run, settings
from tests.stages.test_resume import interrupt

LORA = {"rank": 4, "alpha": 8.0, "layers": 1}
LONGER: dict[str, dict[str, Any]] = {
    "sft": {"max_steps": 12, "parent": "tiny/pretrain"},
    "reward": {"max_steps": 12, "parent": "top/sft"},
    "dpo": {"max_steps": 4, "parent": "top/sft"},
    "ppo": {"max_steps": 4, "parent": "top/sft", "reward": "top/reward"},
    "grpo": {"max_steps": 4, "parent": "top/sft", "reward": "top/reward"},
}
"""Long enough for a second look at a row: an epoch of the small world has five steps."""


def top(pipeline: Pipeline, stage: str, **changes: Any) -> Artifact:
    """A stage with adapters on the top layer, and before it what it builds on."""
    for needed in ("sft", "reward"):
        wanted = f"top/{needed}" in LONGER[stage].values() and needed != stage
        if wanted and f"top/{needed}" not in pipeline.store.refs():
            top(pipeline, needed)
    fresh = {"adapter": LORA} if stage in ("sft", "dpo") else {}  # the others train the parent's adapter on
    return run(pipeline, stage, **{**fresh, "name": f"top/{stage}", **LONGER[stage], **changes})


@pytest.mark.parametrize("stage", [pytest.param(s, marks=() if s == "ppo" else pytest.mark.slow) for s in LONGER])
def test_memory_disk_and_off_give_one_result(
    stage: str, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit in memory and on disk. Off computes the same in other packings, which rounds. bf16 is another
    result."""
    memory = top(pipeline, stage)
    roles = {
        "sft": "policy",
        "reward": "policy, reference",
        "dpo": "policy, reference",
        "grpo": "policy, reference, reward",
    }
    who = f"the lower 1 of 2 layers run once per row, for {roles.get(stage, 'policy, reference, reward, value')}"
    assert f"top/{stage}: {who}; what they give is kept in memory, 0." in capsys.readouterr().err
    forget(pipeline.store, memory)
    disk = top(pipeline, stage, trunk_cache="disk")
    assert disk.digest == memory.digest and "is kept in a file" in capsys.readouterr().err
    forget(pipeline.store, disk)
    off = top(pipeline, stage, trunk_cache="off")
    assert "run once" not in capsys.readouterr().err
    assert off.config | {"trunk_dtype": "base"} == memory.config  # without effect where nothing is kept
    for name, value in memory.metrics.items():
        same = value if isinstance(value, str) else pytest.approx(value, abs=1e-3, rel=1e-3)
        assert off.metrics[name] == same, name
    rounded = top(pipeline, stage, trunk_dtype="bf16")
    assert rounded.files != memory.files and rounded.config != memory.config


@pytest.mark.parametrize("stage", [pytest.param(s, marks=() if s == "ppo" else pytest.mark.slow) for s in LONGER])
def test_stopped_and_started_again(stage: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = top(pipeline, stage)
    forget(pipeline.store, whole)
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Stopped):
            top(pipeline, stage)
    assert top(pipeline, stage).digest == whole.digest


def test_a_file_is_read_by_the_next_run(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep over beta computes no lower layer again; a damaged file is made anew, and `gc` may take it."""
    top(pipeline, "sft")
    computed: list[int] = []
    run_bottom = Trunk.bottom

    def bottom(self: Trunk, batch: Batch) -> Tensor:
        computed.append(batch.input_ids.shape[1])
        return run_bottom(self, batch)

    monkeypatch.setattr(Trunk, "bottom", bottom)
    first = top(pipeline, "dpo", trunk_cache="disk")
    rows, probe = sum(computed), computed[0]
    assert rows > probe
    files = {
        p for p in (pipeline.store.path / "cache/computed").iterdir() if is_sealed(p) and p.stat().st_size > 10_000
    }
    assert len(files) >= 2  # rows to train on and rows held out
    computed.clear()
    assert top(pipeline, "dpo", trunk_cache="disk", beta=0.3).digest != first.digest
    assert computed == [probe]  # the trial of the cut alone
    for path in files:
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-200] + bytes(200))
        assert not is_sealed(path)
    computed.clear()
    forget(pipeline.store, first)
    assert top(pipeline, "dpo", trunk_cache="disk").digest == first.digest and sum(computed) == rows
    assert all(is_sealed(path) for path in files)
    pipeline.store.collect(delete=True)
    assert not any(path.exists() for path in files)


def test_a_parent_that_reaches_down(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Its adapter trained on reaches the first layer, and one line says so. A fresh one on top shares its lower
    layers."""
    config = settings(pipeline, "dpo", parent_adapter="continue", adapter=LORA, name="other", max_steps=4)
    config.model_fields_set.discard("adapter")  # as a default of a recipe; with the stage itself it is refused
    dpo.run(config, pipeline.store)
    why = "policy trains from the first layer on; it goes on from the parent's adapter"
    assert f"other: adapter.layers is 1, but no layer is run once alone: {why}" in capsys.readouterr().err
    run(pipeline, "dpo", parent_adapter="stack", adapter=LORA, name="other", max_steps=4)
    assert "the lower 1 of 2 layers run once per row, for policy, reference" in capsys.readouterr().err
    run(pipeline, "ppo", parent_adapter="stack", adapter=LORA, name="other", max_steps=4)
    err = capsys.readouterr().err
    assert "run once per row, for policy, reference; " in err
    assert "other: not for reward, value, whose lower layers are not those of policy" in err
    run(pipeline, "dpo", name="other")
    assert "run once" not in capsys.readouterr().err  # not asked for, not said


def test_one_look_keeps_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "__call__", lambda *_: pytest.fail("there is nothing to gain"))
    top(pipeline, "sft", max_steps=5)


def test_nothing_in_bf16(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="trunk_dtype has no effect: trunk_cache is off, so nothing is kept"):
        top(pipeline, "sft", trunk_cache="off", trunk_dtype="bf16")
    with pytest.raises(InputError, match=r"adapter\.layers is 3, but the base artifact \w+ has 2 layers"):
        top(pipeline, "sft", adapter={**LORA, "layers": 3})


@pytest.mark.slow
def test_merged_and_quantised(pipeline: Pipeline) -> None:
    """A merge of a top layer's adapter equals it; on a base in 4 bits rows are kept too."""
    from align import merge

    top(pipeline, "dpo")
    merged = merge.run(merge.Config(parent="top/dpo", precision="fp32"), pipeline.store)
    assert merged.metrics["verdict"] == "equal"
    base = {"model": "tiny/pretrain", "quantize": "nf4"}
    quantised: dict[str, Any] = {"parent": None, "base": base, "adapter": LORA, "name": "q", "max_steps": 12}
    made = run(pipeline, "sft", **quantised)
    forget(pipeline.store, made)
    assert run(pipeline, "sft", **quantised, trunk_cache="disk").digest == made.digest
