"""What a base in shards cannot do is refused before it is loaded, in one sentence."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from align import sft
from align.ground import ranks
from align.ground.errors import InputError
from align.recipe import processes
from align.recipe.processes import with_rows_for
from align.stage import layout
from align.stage.execute import check_surroundings
from align.stage.question import Question, prepare
from align.training.plan import Plan
from tests.conftest import Pipeline
from tests.stages.helpers import run, settings


def asked(pipeline: Pipeline, **changes: Any) -> Question:
    return prepare(importlib.import_module("align.sft").STAGE, settings(pipeline, "sft", **changes), pipeline.store)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"trunk_cache": "disk", "adapter": {"rank": 4, "layers": 1}}, "trunk_cache is disk"),
        ({"adapter": {"method": "dora", "rank": 4}}, "adapter.method dora is not proven on shards"),
        ({"adapter": {"rank": 4, "init_lora_weights": "pissa"}}, "init_lora_weights pissa is made of a whole base"),
    ],
)
def test_refused(changes: dict[str, Any], why: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls: copies do all of it, and so does one process."""
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(InputError, match=f"parallel is shard, but {why}"):
        layout.in_shards(asked(pipeline, parallel="shard", **changes), 0)
    assert not layout.in_shards(asked(pipeline, parallel="replicate", **changes), 0)
    monkeypatch.setattr(ranks, "world", lambda: 1)
    assert not layout.in_shards(asked(pipeline, parallel="shard", **changes), 0)


def test_rows_of_added_tokens_are_not_cut(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(InputError, match="rows of added tokens lie in an embedding that is not cut"):
        layout.in_shards(asked(pipeline, parallel="shard"), 3)
    assert layout.in_shards(asked(pipeline, parallel="shard"), 0)


def test_what_is_asked_for_is_looked_at_first(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is loaded, and by `--dry-run`; the control is one process, which cuts nothing."""
    question = asked(pipeline, parallel="shard", adapter={"method": "dora", "rank": 4})
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(InputError, match=r"parallel is shard, but adapter\.method dora"):
        check_surroundings(question)
    monkeypatch.setattr(ranks, "world", lambda: 1)
    check_surroundings(question)


@pytest.mark.parametrize(
    ("width", "device", "given", "tokens"),
    [
        (896, "cpu", {}, 585),  # 524,288 / 896
        (4096, "cpu", {}, 512),
        (64, "cpu", {}, 4096),
        (896, "cuda", {}, 4096),
        (896, "cpu", {"tokens_per_microbatch": 2048}, 2048),  # what was asked for
        (None, "cpu", {}, 4096),
    ],
)
def test_rows_of_a_device(width: int | None, device: str, given: dict[str, Any], tokens: int):
    config = with_rows_for(sft.Config(base="none", data="none", **given), width, device)
    assert config.tokens_per_microbatch == tokens


def test_a_run_takes_them(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result does not change with them, and so neither does its key."""
    monkeypatch.setattr(processes, "SHORTEST", 16)
    monkeypatch.setattr(processes, "NUMBERS", 64 * 32)  # of hidden states of width 32
    question = asked(pipeline)
    short = layout.in_rows(question)
    assert short.config.tokens_per_microbatch == 64 and short.key == question.key
    rows: list[int] = []
    monkeypatch.setattr(Plan, "__init__", noting(Plan.__init__, rows))
    run(pipeline, "sft", max_steps=1, seed=7)
    assert rows == [64]


def noting(init: Any, rows: list[int]) -> Any:
    def __init__(self: Plan, *args: Any, **kwargs: Any) -> None:
        rows.append(kwargs["tokens_per_microbatch"])
        init(self, *args, **kwargs)

    return __init__
