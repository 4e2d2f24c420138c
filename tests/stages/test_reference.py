"""The reference's log-probs are computed once per store, only for the pairs that a run looks at, and never taken from
the wrong place."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from align import measures
from align.data.examples import Example, digest
from tests.conftest import Pipeline
from tests.models.models import pairs
from tests.stages.helpers import forget, run


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs each reference pass looked at."""
    passes: list[int] = []
    inner = measures.passes.flat_logprobs

    def counted(roles: Any, role: str, examples: list[Example], budget: int) -> Any:
        passes.append(len(examples))
        return inner(roles, role, examples, budget)

    monkeypatch.setattr(measures.passes, "flat_logprobs", counted)
    return passes


@pytest.mark.slow
def test_a_sweep_computes_the_reference_once(pipeline: Pipeline, computed: list[int]) -> None:
    shutil.rmtree(pipeline.store.path / "cache/computed")
    run(pipeline, "dpo", beta=0.3)
    assert len(computed) == 2  # to train on, and held out
    run(pipeline, "dpo", beta=0.7)
    run(pipeline, "dpo", beta=0.7, learning_rate=3e-3)
    assert len(computed) == 2
    run(pipeline, "dpo", beta=0.7, parent=pipeline.made["dpo"].digest)  # another reference
    assert len(computed) == 4


def test_what_is_kept_gives_the_same_artifact(pipeline: Pipeline, computed: list[int]) -> None:
    first = run(pipeline, "dpo", beta=0.3)
    forget(pipeline.store, first)
    before = len(computed)
    assert run(pipeline, "dpo", beta=0.3).digest == first.digest
    assert len(computed) == before
    for path in (pipeline.store.path / "cache/computed").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    forget(pipeline.store, first)
    assert run(pipeline, "dpo", beta=0.3).digest == first.digest  # damaged, so made again
    assert len(computed) == before + 2


def test_only_pairs_that_a_run_looks_at(pipeline: Pipeline, computed: list[int]) -> None:
    run(pipeline, "dpo", max_steps=1, batch_size=2, beta=0.3)
    assert computed == [2]  # the held-out ones are there from the run before
    run(pipeline, "dpo", max_steps=None, epochs=1.0, batch_size=2, beta=0.3)
    assert len(computed) == 2 and computed[1] > 2


def test_digest_tells_examples_apart() -> None:
    (one,) = pairs(1)
    others = [
        Example(one.sequences[::-1], one.supervised, one.shared),
        Example(one.sequences, one.supervised[::-1], one.shared),
        Example(one.sequences, one.supervised, one.shared - 1),
        Example(
            (tuple(one.sequences[0]) + tuple(one.sequences[1]),),
            (tuple(one.supervised[0]) + tuple(one.supervised[1]),),
            one.shared,
        ),
    ]
    assert len({digest([e]) for e in (one, *others)}) == 5
    assert digest([one]) == digest([Example(one.sequences, one.supervised, one.shared, margin=2.0)])
